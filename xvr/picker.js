// The page of `xvr pick`: it sends what was done, and shows the picture that comes back.
// Until that picture has come it sends nothing more, but merges what is done meanwhile into the next request.
"use strict"

const setup = JSON.parse(document.getElementById("setup").textContent)
const view = document.getElementById("view")
const panel = document.getElementById("panel")
const note = document.getElementById("note")
const similarity = document.getElementById("similarity")
const inputs = {} // By the name of a number: its slider, and its field to type into

// Requests

const add = (a = [0, 0, 0], b) => b.map((value, n) => value + (a[n] || 0))
const merge = {
  move: (a, b) => ({ ...a, ...b }),
  do: (a = [], b) => [...a, ...b],
  shift: add,
  turn: add,
}
let pending = {}
let busy = false
let ended = false

function ask(more) {
  for (const [key, value] of Object.entries(more)) {
    pending[key] = key in merge ? merge[key](pending[key], value) : value
  }
  if (!busy) send()
}

async function send() {
  busy = true
  while (Object.keys(pending).length && !ended) {
    const request = pending
    pending = {}
    if (request.do?.includes("refine")) view.setAttribute("aria-busy", true)
    try {
      await showAll(await fetch(location.pathname, { method: "POST", body: JSON.stringify(request) }))
      ended = request.do?.includes("done")
    } catch {
      ended = true
    }
    if (ended) note.textContent = "xvr pick has ended; its result is in the terminal. This page can be closed."
    view.removeAttribute("aria-busy")
  }
  busy = false
}

// The answer has a line for each state; while a registration runs, there are several
async function showAll(reply) {
  if (!reply.ok) throw reply
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ""
  let shown = false
  for (let part; !(part = await reader.read()).done; ) {
    const lines = (text + part.value).split("\n")
    text = lines.pop()
    if (lines.length) {
      show(JSON.parse(lines.at(-1)))
      shown = true
    }
  }
  if (!shown) note.textContent = "that failed; the terminal says why"
  await view.decode()
}

function show(state) {
  view.src = state.image
  similarity.textContent = state.similarity === null ? "" : `similarity ${state.similarity.toFixed(3)}`
  note.textContent = state.note
  if (pending.move) return // a slider is under the hand: it stays where it is
  for (const [name, { slider, number }] of Object.entries(inputs)) {
    const [low, high, step] = state.ranges[name]
    Object.assign(slider, { min: low, max: high, step })
    slider.value = state.numbers[name]
    number.value = (Math.round(100 * state.numbers[name]) / 100 || 0).toFixed(2)
  }
}

// Sliders and buttons

function make(parent, tag, properties = {}, text = "") {
  return parent.appendChild(Object.assign(document.createElement(tag), properties, text && { textContent: text }))
}

const makeBar = () => make(panel, "div", { className: "bar" })

function makeNumber(name, label) {
  const row = make(make(panel, "div"), "label", { className: "row" })
  make(row, "span", {}, label)
  const slider = make(row, "input", { type: "range", ariaLabel: label })
  const number = make(row, "input", { type: "number", step: "any", ariaLabel: `${label}, as a number` })
  slider.oninput = () => {
    number.value = slider.value
    ask({ move: { [name]: +slider.value } })
  }
  number.onchange = () => number.value && ask({ move: { [name]: +number.value } })
  inputs[name] = { slider, number }
}

function makeLook() {
  const bar = makeBar()
  const look = make(bar, "select", { ariaLabel: "look", onchange: () => ask({ look: look.value }) })
  setup.looks.forEach((name) => make(look, "option", {}, name))
  make(bar, "span", {}, "X-ray")
  const range = { type: "range", min: 0, max: 1, step: 0.05, value: 0.5, ariaLabel: "from the X-ray to the CT" }
  const alpha = make(bar, "input", { ...range, oninput: () => ask({ alpha: +alpha.value }) })
  make(bar, "span", {}, "CT")
}

function makeButton(bar, name) {
  make(bar, "button", { type: "button", id: name.replace(" ", "_"), onclick: () => ask({ do: [name] }) }, name)
}

for (const [name, label] of Object.entries(setup.names)) makeNumber(name, label)
const fine = make(make(makeBar(), "label", {}, "fine "), "input", {
  type: "checkbox",
  onchange: () => ask({ fine: fine.checked }),
})
if (setup.xray) makeLook()
const views = makeBar()
const ends = makeBar()
setup.actions.forEach((name) => makeButton(["refine", "save"].includes(name) ? ends : views, name))
makeButton(ends, "done")
make(
  make(panel, "div"),
  "small",
  {},
  "On the picture: drag to shift, shift-drag to turn, wheel for depth, shift-wheel to turn in the picture. " +
    "With the keyboard: arrows, shift-arrows, + and -, comma and point.",
)

// The picture as a handle

const step = () => (fine.checked ? 0.1 : 1)
const DEGREES = 0.4 // A turn for a pixel of a drag
const DEPTH = 5 // mm along the beam for a click of the wheel, or a key
let from = null // Where the pointer was last

view.onpointerdown = (event) => {
  view.setPointerCapture(event.pointerId)
  view.focus()
  from = event
}

view.onpointerup = view.onpointercancel = () => {
  from = null
}

view.onpointermove = (event) => {
  if (!from) return
  const right = step() * (event.clientX - from.clientX)
  const down = step() * (event.clientY - from.clientY)
  from = event
  if (event.shiftKey) {
    ask({ turn: [DEGREES * right, DEGREES * down, 0] })
  } else {
    ask({ shift: [(right * view.naturalWidth) / view.clientWidth, (down * view.naturalHeight) / view.clientHeight, 0] })
  }
}

view.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault()
    const way = Math.sign(event.deltaY || event.deltaX) * step()
    ask(event.shiftKey ? { turn: [0, 0, way] } : { shift: [0, 0, DEPTH * way] })
  },
  { passive: false },
)

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
const KEYS = { "+": ["shift", -DEPTH], "-": ["shift", DEPTH], ",": ["turn", -1], ".": ["turn", 1] }

view.onkeydown = (event) => {
  if (event.key in ARROWS) {
    const [right, down] = ARROWS[event.key]
    ask({ [event.shiftKey ? "turn" : "shift"]: [step() * right, step() * down, 0] })
  } else if (event.key in KEYS) {
    const [what, size] = KEYS[event.key]
    ask({ [what]: [0, 0, step() * size] })
  } else {
    return
  }
  event.preventDefault()
}

document.documentElement.style.setProperty("--shape", setup.shape)
ask({ look: setup.looks[0], alpha: 0.5, fine: false })
