() => {
  document.addEventListener('paste', (event) => {
    const input = document.querySelector('#upload input[type=file]');
    if (!input || !event.clipboardData || !event.clipboardData.files.length) return;
    const held = new DataTransfer();
    held.items.add(event.clipboardData.files[0]);
    input.files = held.files;
    input.dispatchEvent(new Event('change', { bubbles: true }));
  });
}
