const board = element.querySelector('.board');
const said = element.querySelector('.said');
let game = null, gone = new Set(), painting = null, busy = false, again = false, turn = 0, timer = null;

function build() {
  const before = game;
  game = props.value ? JSON.parse(props.value) : null;
  if (!game) { board.replaceChildren(); said.textContent = 'Open a picture first.'; return; }
  if (!before || before.look !== game.look) deal();
  draw();
  play();
  ask();
}

function play() {
  stop();
  board.classList.remove('needs');
  element.querySelector('[value=leave]').checked = true;
}

// All players of a picture. Cells are kept where they can be, so that the focus is not lost with them.
function deal() {
  board.style.backgroundImage = 'url(' + game.view + ')';
  board.style.gridTemplateColumns = 'repeat(' + game.w + ', 1fr)';
  const focused = board.contains(document.activeElement);
  while (board.children.length > game.h * game.w) board.lastChild.remove();
  for (let player = board.children.length; player < game.h * game.w; player++) {
    const cell = document.createElement('button');
    cell.type = 'button';
    cell.className = 'cell';
    cell.dataset.player = player;
    cell.tabIndex = -1;
    cell.setAttribute('role', 'checkbox');
    board.append(cell);
  }
  if (!board.querySelector('[tabindex="0"]')) board.firstChild.tabIndex = 0;
  if (focused) board.querySelector('[tabindex="0"]').focus();
  gone.clear();
}

function stop() {
  turn++;
  clearInterval(timer);
}

function draw() {
  for (const cell of board.children) {
    const out = gone.has(Number(cell.dataset.player));
    cell.classList.toggle('gone', out);
    cell.classList.toggle('best', Number(cell.dataset.player) === game.best);
    cell.setAttribute('aria-checked', String(!out));
    const row = Math.floor(cell.dataset.player / game.w) + 1, column = cell.dataset.player % game.w + 1;
    cell.setAttribute('aria-label', 'row ' + row + ', column ' + column + (out ? ', gone' : ', plays'));
  }
}

// One question at a time: what was missed meanwhile is asked at once, as it then is.
async function ask() {
  again = true;
  if (busy) return;
  busy = true;
  while (again) {
    again = false;
    const asked = game, left = game.h * game.w - gone.size;
    try {
      const found = await server.without({ ...question(), gone: [...gone] });
      if (asked !== game) again = true; else if (found) tell(found, left); else closed();
    } catch (error) {
      closed();
    }
  }
  busy = false;
}

function question() {
  return { session: game.session, look: game.look, target: game.target, utility: game.utility };
}

function closed() {
  said.textContent = 'The picture is no longer open; open it again.';
}

function tell(found, left) {
  const lines = [
    ['utility (with all ' + game.full.toFixed(4) + ')', found.utility.toFixed(4)],
    ['probability of ' + game.name + ' (with all ' + (100 * game.probability).toFixed(2) + ' %)', (100 * found.probability).toFixed(2) + ' %'],
    ['top class', found.top + ', ' + (100 * found.sure).toFixed(2) + ' %'],
    ['players', left + ' of ' + game.h * game.w],
  ];
  said.replaceChildren(...lines.map(([name, value]) => {
    const line = document.createElement('div'), label = document.createElement('span'), text = document.createElement('b');
    label.textContent = name;
    text.textContent = value;
    text.dataset.name = name.split(' ')[0];
    line.append(label, text);
    return line;
  }));
}

function set(player, out) {
  if (gone.has(player) === out) return;
  if (out) gone.add(player); else gone.delete(player);
  draw();
  ask();
}

async function needs(player) {
  stop();
  const mine = turn;
  const found = await server.needs({ ...question(), player }).catch(() => null);
  if (mine !== turn) return;
  if (!found) return closed();
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
  play();
  const mine = turn;
  gone.clear();
  draw();
  said.textContent = 'The players’ values are being worked out ...';
  const order = await server.order({ ...question(), best }).catch(() => null);
  if (mine !== turn) return;
  if (!order) return closed();
  let place = 0;
  timer = setInterval(() => {
    if (place >= order.length) { clearInterval(timer); return; }
    gone.add(order[place++]);
    draw();
    ask();
  }, 250);
}

function focus(player) {
  board.querySelector('[tabindex="0"]').tabIndex = -1;
  board.children[player].tabIndex = 0;
  board.children[player].focus();
}

function player(event) {
  const cell = document.elementFromPoint(event.clientX, event.clientY);
  return cell && cell.parentElement === board ? Number(cell.dataset.player) : null;
}

board.addEventListener('pointerdown', (event) => {
  const chosen = player(event);
  if (chosen === null) return;
  stop();
  event.preventDefault();
  focus(chosen);
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
    focus(here + step);
  } else if (event.key === ' ' || event.key === 'Enter') {
    event.preventDefault();
    stop();
    if (element.querySelector('[value=needs]').checked) needs(here); else set(here, !gone.has(here));
  }
});
element.querySelector('.best').addEventListener('click', () => game && leave(true));
element.querySelector('.worst').addEventListener('click', () => game && leave(false));
element.querySelector('.back').addEventListener('click', () => { if (game) { play(); gone.clear(); draw(); ask(); } });
for (const choice of element.querySelectorAll('input[type=radio]')) {
  choice.addEventListener('change', () => board.classList.toggle('needs', choice.value === 'needs' && choice.checked));
}
watch('value', build);
build();
