// Shows the segment under the pointer. Gradio runs this once, with `element`, whose content it replaces with every answer.
let known = { source: "", width: 0, numbers: new Uint32Array() };

// Returns the segment numbers of the pixels, decoded once for each answer: R + 256 G + 65536 B.
function decode(image) {
  if (image.src !== known.source && image.complete && image.naturalWidth) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const numbers = new Uint32Array(canvas.width * canvas.height);
    for (let i = 0; i < numbers.length; i++) numbers[i] = data[4 * i] + 256 * data[4 * i + 1] + 65536 * data[4 * i + 2];
    known = { source: image.src, width: canvas.width, numbers };
  }
  return known;
}

function highlight(number) {
  const canvas = element.querySelector(".highlight");
  if (canvas.dataset.number === String(number)) return;
  canvas.dataset.number = number;
  for (const row of element.querySelectorAll("tr[data-number]")) row.classList.toggle("lit", row.dataset.number === String(number));
  const { width, numbers } = decode(element.querySelector(".numbers"));
  if (!width) return;
  [canvas.width, canvas.height] = [width, numbers.length / width];
  const context = canvas.getContext("2d");
  const light = context.createImageData(canvas.width, canvas.height);
  const pixels = new Uint32Array(light.data.buffer);
  if (number) for (let i = 0; i < numbers.length; i++) if (numbers[i] === number) pixels[i] = 0x66ffffff;
  context.putImageData(light, 0, 0);
}

function say(row, x, y) {
  const hover = element.querySelector(".hover");
  hover.hidden = !row;
  if (!row) return;
  hover.textContent = row.dataset.label;
  const picture = element.querySelector(".picture");
  hover.style.left = `${Math.max(0, Math.min(x + 12, picture.clientWidth - hover.offsetWidth))}px`;
  hover.style.top = `${y + 12 + hover.offsetHeight < picture.clientHeight ? y + 12 : Math.max(0, y - 12 - hover.offsetHeight)}px`;
}

function point(event) {
  const row = event.target.closest("tr[data-number]");
  if (row) return highlight(Number(row.dataset.number));
  const picture = event.target.closest(".picture");
  if (!picture) return event.pointerType === "touch" || leave();
  const { width, numbers } = decode(picture.querySelector(".numbers"));
  if (!width) return;
  const box = picture.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const column = Math.min(width - 1, Math.max(0, Math.floor((x / box.width) * width)));
  const height = numbers.length / width;
  const line = Math.min(height - 1, Math.max(0, Math.floor((y / box.height) * height)));
  const number = numbers[line * width + column];
  highlight(number);
  say(element.querySelector(`tr[data-number="${number}"]`), x, y);
}

function leave() {
  if (!element.querySelector(".highlight")) return;
  highlight(0);
  say(null);
}

element.addEventListener("pointermove", point);
element.addEventListener("pointerdown", point);
// A finger that is lifted leaves too; what it tapped stays.
element.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave());
