const board = element.querySelector('.board');
const said = element.querySelector('.said');
let game = null, gone = new Set(), painting = null, asked = 0, timer = null;

function build() {
  clearInterval(timer);
  game = props.value ? JSON.parse(props.value) : null;
  gone = new Set();
  board.replaceChildren();
  if (!game) { said.textContent = 'Open a picture first.'; return; }
  board.style.backgroundImage = 'url(' + game.view + ')';
  board.style.gridTemplateColumns = 'repeat(' + game.w + ', 1fr)';
  for (let player = 0; player < game.h * game.w; player++) {
    const cell = document.createElement('button');
    cell.type = 'button';
    cell.className = 'cell';
    cell.dataset.player = player;
    cell.tabIndex = player ? -1 : 0;
    cell.setAttribute('role', 'checkbox');
    board.append(cell);
  }
  board.classList.remove('needs');
  draw();
  ask();
}

function draw() {
  for (const cell of board.children) {
    const out = gone.has(Number(cell.dataset.player));
    cell.classList.toggle('gone', out);
    cell.setAttribute('aria-checked', String(!out));
    const row = Math.floor(cell.dataset.player / game.w) + 1, column = cell.dataset.player % game.w + 1;
    cell.setAttribute('aria-label', 'row ' + row + ', column ' + column + (out ? ', gone' : ', plays'));
  }
}

async function ask() {
  const turn = ++asked;
  try {
    const found = await server.without({ session: game.session, gone: [...gone] });
    if (turn === asked) tell(found);
  } catch (error) {
    if (turn === asked) said.textContent = 'The picture is no longer open; open it again.';
  }
}

function tell(found) {
  said.replaceChildren();
  const lines = [
    ['utility', found.utility.toFixed(4)],
    ['probability of ' + game.name, (100 * found.probability).toFixed(2) + ' %'],
    ['top class', found.top + ', ' + (100 * found.sure).toFixed(2) + ' %'],
    ['players', game.h * game.w - gone.size + ' of ' + game.h * game.w],
  ];
  for (const [name, value] of lines) {
    const line = document.createElement('div'), label = document.createElement('span'), text = document.createElement('b');
    label.textContent = name;
    text.textContent = value;
    text.dataset.name = name.split(' ')[0];
    line.append(label, text);
    said.append(line);
  }
}

function set(player, out) {
  if (gone.has(player) === out) return;
  if (out) gone.add(player); else gone.delete(player);
  draw();
  ask();
}

async function needs(player) {
  const found = await server.needs({ session: game.session, player });
  const most = Math.max(...found.map(Math.abs), 1e-12);
  board.classList.add('needs');
  [...board.children].forEach((cell, other) => {
    const share = found[other] / most;
    cell.style.setProperty('--need', share > 0 ? 'rgba(255,176,0,' + share * 0.8 + ')' : 'rgba(0,150,255,' + -share * 0.8 + ')');
    cell.title = other === player ? 'the chosen player' : (share > 0 ? 'they need each other: ' : 'redundant: ') + found[other].toPrecision(3);
    cell.classList.toggle('chosen', other === player);
  });
}

async function leave(best) {
  clearInterval(timer);
  gone = new Set();
  draw();
  said.textContent = 'The players’ values are being worked out ...';
  const order = await server.order({ session: game.session, best });
  let place = 0;
  timer = setInterval(() => {
    if (place >= order.length) { clearInterval(timer); return; }
    gone.add(order[place++]);
    draw();
    ask();
  }, 250);
}

function player(event) {
  const cell = document.elementFromPoint(event.clientX, event.clientY);
  return cell && cell.parentElement === board ? Number(cell.dataset.player) : null;
}

board.addEventListener('pointerdown', (event) => {
  const chosen = player(event);
  if (chosen === null) return;
  clearInterval(timer);
  event.preventDefault();
  board.children[chosen].focus();
  if (element.querySelector('[value=needs]').checked) { needs(chosen); return; }
  painting = !gone.has(chosen);
  set(chosen, painting);
});
board.addEventListener('pointermove', (event) => {
  const chosen = painting === null ? null : player(event);
  if (chosen !== null) set(chosen, painting);
});
for (const name of ['pointerup', 'pointercancel', 'pointerleave']) board.addEventListener(name, () => { painting = null; });
board.addEventListener('keydown', (event) => {
  if (!game || !event.target.dataset.player) return;
  const here = Number(event.target.dataset.player);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: game.w, ArrowUp: -game.w }[event.key];
  if (step && board.children[here + step]) {
    event.preventDefault();
    event.target.tabIndex = -1;
    board.children[here + step].tabIndex = 0;
    board.children[here + step].focus();
  } else if (event.key === ' ' || event.key === 'Enter') {
    event.preventDefault();
    if (element.querySelector('[value=needs]').checked) needs(here); else set(here, !gone.has(here));
  }
});
element.querySelector('.best').addEventListener('click', () => game && leave(true));
element.querySelector('.worst').addEventListener('click', () => game && leave(false));
element.querySelector('.back').addEventListener('click', () => game && build());
for (const choice of element.querySelectorAll('input[type=radio]')) {
  choice.addEventListener('change', () => board.classList.toggle('needs', choice.value === 'needs' && choice.checked));
}
watch('value', build);
build();
