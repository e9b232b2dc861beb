// The pages of `xvr register --report`: the viewer of a result, and the table of several. Neither needs a network.
"use strict"

// The viewer: what the controls state is shown

const viewer = document.getElementById("viewer")
const find = (id) => document.getElementById(id)

const shown = {
  divider: (pose) => `X-ray at the left of the divider, ${pose} at the right`,
  blend: (pose) => `X-ray, with ${pose} blended over it`,
  blink: (pose) => `X-ray and ${pose} in turn`,
  squares: (pose) => `X-ray and ${pose} in the squares of a checkerboard`,
  difference: (pose) => `Difference of X-ray and ${pose}, four times as bright: black where they are the same`,
  xray: () => "X-ray alone",
  rendering: (pose) => pose,
}
// Modes with an amount: its label, its range, its text, and where it begins
const amounts = {
  divider: { label: "Divider", min: 0, max: 100, text: (n) => `${n} % from the left`, now: 50 },
  blend: { label: "Share of the rendering", min: 0, max: 100, text: (n) => `${n} %`, now: 50 },
  squares: { label: "Squares in a row", min: 2, max: 32, text: (n) => `${n} squares`, now: 8 },
}

function chosen(name, otherwise) {
  return viewer.querySelector(`input[name=${name}]:checked`)?.value ?? otherwise
}

function choose(input) {
  input.checked = input.type === "radio" || !input.checked
  input.focus()
  changeMode()
}

function changeMode() {
  const amount = amounts[chosen("mode")]
  find("amount").disabled = !amount
  if (amount) {
    Object.assign(find("amount"), { min: amount.min, max: amount.max })
    find("amount").value = amount.now
    find("amount-label").textContent = amount.label
  }
  redraw()
}

function redraw() {
  const mode = chosen("mode")
  const pose = chosen("pose", "final")
  const amount = amounts[mode]
  if (amount) {
    amount.now = find("amount").valueAsNumber
    find("amount").setAttribute("aria-valuetext", amount.text(amount.now))
  }
  const x = 10 * amounts.divider.now
  const square = 1000 / amounts.squares.now
  find("stage").setAttribute("class", mode)
  find("stage").style.setProperty("--blend", amounts.blend.now / 100)
  find("beyond-box").setAttribute("x", x)
  find("divider").setAttribute("transform", `translate(${x - 500} 0)`)
  find("squares").setAttribute("patternTransform", `scale(${square / 125})`)
  find("rendering").setAttribute("href", `#image-${pose}`)
  find("edges").setAttribute("href", `#edges-${pose}`)
  find("edges").toggleAttribute("hidden", !find("with-edges").checked)
  const edges = find("with-edges").checked ? `; edges of the ${viewer.dataset.edges} in yellow` : ""
  const text = shown[mode](`rendering at the ${pose} pose`) + edges
  if (find("shown").textContent !== text) find("shown").textContent = text
}

function drag(event) {
  if (chosen("mode") !== "divider" || !event.buttons) return
  const box = find("stage").getBoundingClientRect()
  find("stage").setPointerCapture(event.pointerId)
  find("amount").value = (100 * (event.clientX - box.left)) / box.width
  redraw()
}

function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return
  const modes = viewer.querySelectorAll("input[name=mode]")
  const poses = { i: "initial", f: "final" }
  const input =
    modes[event.key - 1] ??
    (event.key === "e" ? find("with-edges") : viewer.querySelector(`input[name=pose][value="${poses[event.key]}"]`))
  if (!input) return
  event.preventDefault()
  choose(input)
}

if (viewer) {
  viewer.addEventListener("change", (event) => (event.target.name === "mode" ? changeMode() : redraw()))
  find("amount").addEventListener("input", redraw)
  find("stage").addEventListener("pointerdown", drag)
  find("stage").addEventListener("pointermove", drag)
  viewer.addEventListener("keydown", press)
  viewer.addEventListener("submit", (event) => event.preventDefault())
  changeMode()
}

// On paper nothing is folded away

const folded = [...document.querySelectorAll("details")]
addEventListener("beforeprint", () => folded.forEach((part) => (part.open = true)))
addEventListener("afterprint", () => folded.forEach((part) => (part.open = false)))

// The table: a button sorts its rows, pressed again in the opposite order; what is not known comes last

const body = find("index")?.tBodies[0]
const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim()

function sort(header) {
  const down = header.ariaSort === "ascending"
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort")
  header.setAttribute("aria-sort", down ? "descending" : "ascending")
  const order = (a, b) => a.localeCompare(b, "en", { numeric: true }) || 0
  const number = (text) => (text === "" || isNaN(text) ? null : Number(text))
  const compare = (a, b) => {
    const [one, other] = [a, b].map((row) => value(row, header.cellIndex))
    if (one === "" || other === "") return (one === "") - (other === "")
    const [m, n] = [number(one), number(other)]
    return (down ? -1 : 1) * (m === null || n === null ? order(one, other) : m - n)
  }
  body.append(...[...body.rows].sort(compare))
}

for (const button of body ? find("index").tHead.querySelectorAll("button") : []) {
  button.addEventListener("click", () => sort(button.parentElement))
}
