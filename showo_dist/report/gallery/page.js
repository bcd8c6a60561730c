'use strict';

// Players: a slider moves all checkpoints of a prompt from round to round.

const veil = (mask, side) => [...mask].map((bit, i) => bit === '1'
  ? `M${i % side} ${Math.floor(i / side)}h1v1h-1z` : '').join('');

for (const player of document.querySelectorAll('.player')) {
  const range = player.querySelector('input[type=range]');
  const output = player.querySelector('output');
  const play = player.querySelector('.play');
  const stacks = [...player.querySelectorAll('.stack')].map((stack) => ({
    image: stack.querySelector('img'), path: stack.querySelector('path'),
    ...JSON.parse(stack.querySelector('script').textContent) }));
  let timer = null;
  const show = () => {
    const round = Number(range.value);
    for (const stack of stacks) {
      const place = Math.min(round, stack.frames.length) - 1;  // checkpoints may differ in rounds
      stack.image.src = stack.frames[place];
      stack.path.setAttribute('d', veil(stack.masks[place], stack.side));
    }
    output.textContent = `round ${round} of ${range.max}`;
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'Play'; };
  const next = () => {
    if (range.value === range.max) { stop(); return; }
    range.value = Number(range.value) + 1;
    show();
  };
  play.addEventListener('click', () => {
    if (timer !== null) { stop(); return; }
    if (range.value === range.max) { range.value = 1; show(); }
    for (const stack of stacks) for (const file of stack.frames) new Image().src = file;  // preload
    timer = setInterval(next, 350);
    play.textContent = 'Pause';
  });
  range.addEventListener('input', () => { stop(); show(); });
  player.querySelector('input[type=checkbox]').addEventListener('change', (event) =>
    player.classList.toggle('unmasked', !event.target.checked));
  player.querySelector('.controls').hidden = false;
  show();
}

// Dialog: one image large; Back and Next go through the checkpoints of its prompt.

const dialog = document.querySelector('dialog');
let row = [];
let place = 0;
const turn = (by) => {
  place = (place + by + row.length) % row.length;
  const image = row[place].querySelector('img');
  dialog.querySelector('img').src = image.src;
  dialog.querySelector('img').alt = image.alt;
  dialog.querySelector('p').textContent = image.alt;
};
for (const button of document.querySelectorAll('.strip button')) {
  button.addEventListener('click', () => {
    row = [...button.closest('.strip').querySelectorAll('button')];
    place = row.indexOf(button);
    turn(0);
    dialog.showModal();
  });
}
dialog.querySelector('.back').addEventListener('click', () => turn(-1));
dialog.querySelector('.next').addEventListener('click', () => turn(1));
dialog.querySelector('.close').addEventListener('click', () => dialog.close());
dialog.addEventListener('keydown', (event) => {
  if (event.key === 'ArrowLeft') turn(-1);
  if (event.key === 'ArrowRight') turn(1);
});
dialog.addEventListener('close', () => row[place].focus());
