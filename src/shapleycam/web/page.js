() => {
  document.addEventListener('paste', (event) => {
    const input = document.querySelector('#upload input[type=file]');
    if (!input || !event.clipboardData || !event.clipboardData.files.length) return;
    const held = new DataTransfer();
    held.items.add(event.clipboardData.files[0]);
    input.files = held.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  });
  // What is typed into a box that is searched takes the place of what it holds.
  document.addEventListener('focusin', (event) => {
    if (event.target.matches('#search input, #other input')) setTimeout(() => event.target.select());
  });
}
