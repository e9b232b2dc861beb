// The front end of the pose picker: in a notebook (as anywidget calls it) and on the page of `xvr pick`.
// What is done goes out as a request; states with pictures come back. Until the answer to a request has come, the next
// one waits, and what is done meanwhile is merged into it.

const DEGREES = 0.4 // A turn for a pixel of a drag
const MM = 1 // Along the beam for a pixel of a drag
const NOTCH = 5 // mm along the beam for a click of the wheel, or a key
const SERIES = 800 // ms; keys, or clicks of the wheel, that follow sooner are one step to undo
const PATIENCE = 2000 // ms after which the picker says that it waits
const NO_KERNEL = "waiting for Python; without a running kernel this is a picture, and nothing can be moved"

// Requests

const sum = (a, b) => b.map((value, n) => value + a[n])
const together = { shift: sum, turn: sum, window: sum, move: (a, b) => ({ ...a, ...b }) }

// Add what was done to what is to be done: parts of one gesture become one
export function merge(pending, action) {
  const last = pending.at(-1)
  const same = last && action.do in together && ["do", "view", "gesture"].every((key) => last[key] === action[key])
  if (!same) return [...pending, action]
  return [...pending.slice(0, -1), { ...last, by: together[action.do](last.by, action.by) }]
}

// Sends requests; `hear` gets each state with its pictures, `tell` whether an answer is awaited, late, or there. One is
// under way at a time. Of moves, as a drag makes them, so many may be: where messages take long, as between a notebook
// and its kernel, Python has the next one when it is done with one.
export function makeLine(model, hear, tell = () => {}, movesUnderWay = 1) {
  const client = Math.random().toString(36).slice(2)
  let actions = []
  let look = {}
  let sent = 0
  let answered = 0
  let onlyMoves = true // All that is under way
  let timer = null

  function wait() {
    clearTimeout(timer)
    timer = setTimeout(() => tell("late"), PATIENCE)
  }

  function flush() {
    if (!(actions.length || Object.keys(look).length)) return
    const moves = actions.length > 0 && actions.every((action) => action.do in together)
    const underWay = sent - answered
    if (underWay >= (moves && onlyMoves ? movesUnderWay : 1)) return
    onlyMoves = moves
    sent += 1
    wait()
    tell("waiting")
    model.send({ client, number: sent, actions, look })
    actions = []
    look = {}
  }

  const listen = async (state, pictures = []) => {
    clearTimeout(timer)
    const own = state.client === client && state.number > answered && !state.working
    if (own) {
      answered = state.number
      if (answered < sent) wait()
      flush() // Python computes while the page draws
    }
    await hear(state, pictures)
    if (own && answered === sent) tell("idle")
  }
  model.on("msg:custom", listen)

  return {
    act(action, more = {}) {
      actions = merge(actions, action)
      look = { ...look, ...more }
      flush()
    },
    show(more) {
      look = { ...look, ...more }
      flush()
    },
    close: () => model.off("msg:custom", listen),
  }
}

// Parts of the page

function make(parent, tag, properties = {}, ...classes) {
  const made = Object.assign(document.createElement(tag), properties)
  if (classes.length) made.classList.add(...classes)
  return parent.appendChild(made)
}

const TOOLS = {
  turn: ["Rotate", "Drag: rotate the patient about the isocentre; what is near the source follows the pointer"],
  move: ["Move", "Drag: move the patient with the pointer. With another tool: shift-drag, or the middle button"],
  roll: ["Roll", "Drag: turn the patient in the picture. With another tool: ctrl-drag"],
  depth: ["Zoom", "Drag down: nearer to the source, so larger. With another tool: the right button, or the wheel"],
  window: ["Window", "Drag right: a wider window; up: brighter. With another tool: alt-drag"],
}

const HELP = {
  drag: "rotate the patient, or what the chosen tool says",
  "shift-drag, middle button": "move the patient",
  "ctrl-drag, shift-wheel": "roll: turn in the picture",
  "right button, wheel": "zoom: along the beam (the wheel after a click into the picture)",
  "alt-drag": "window (right: wider) and level (up: brighter); double click: automatic again",
  "two fingers": "move, roll and zoom",
  "← → ↑ ↓": "move by a pixel; with shift rotate by 1°",
  "+ −": "zoom by 5 mm",
  ", .": "roll by 1°",
  f: "fine: everything by a tenth",
  "u, ctrl-z": "undo; each gesture is one step",
  "ctrl-y, ctrl-shift-z": "redo",
  "space, held": "the X-ray alone",
  l: "next look",
  g: "outline of the last refined pose",
  r: "refine: register from here",
  s: "save the pose",
  "?": "this list",
}

const DESCRIBED = {
  edges: "the rendering's edges, yellow, on the X-ray",
  blend: "a mean of the two",
  colours: "X-ray red, rendering cyan; grey where they agree",
  checkerboard: "squares of the X-ray and of the rendering by turns",
  "X-ray": "the X-ray alone",
  rendering: "the rendering alone",
}

// A picture with its name, its sides, and its similarity
function makeView(parent, { name, shape }) {
  const figure = make(parent, "figure")
  figure.style.setProperty("--shape", shape)
  make(figure, "figcaption", { textContent: name, title: name })
  const plate = make(figure, "div", {}, "plate")
  const canvas = make(plate, "canvas", { tabIndex: 0, ariaLabel: `${name}. Keys: press ? for a list` })
  canvas.setAttribute("role", "img")
  const sides = {}
  for (const side of ["left", "right", "top", "bottom"]) {
    sides[side] = make(plate, "span", { title: `the patient's side at the ${side}` }, "side", side)
  }
  const similarity = make(figure, "div", { title: "multiscale correlation of X-ray and rendering; 1 is the most" }, "alike")
  return { figure, canvas, sides, similarity }
}

function render({ model, el }) {
  const setup = model.get("setup")
  const root = make(el, "div", {}, "xvr-picker")
  let view = 0 // The last that was touched
  let gesture = 0
  let tool = "turn"
  let look = setup.look
  let drawn = 0
  let busy = false // A registration runs
  let ended = false

  // Tools above, pictures, and the panel beside them
  const bar = make(root, "div", { ariaLabel: "tools" }, "bar")
  bar.setAttribute("role", "toolbar")
  const body = make(root, "div", {}, "body")
  const pictures = make(body, "div", {}, "pictures")
  const views = setup.views.map((about) => makeView(pictures, about))
  const panel = make(body, "div")
  const alarm = make(panel, "p", {}, "message", "error")
  alarm.setAttribute("role", "alert")
  const note = make(panel, "p", {}, "message")
  note.setAttribute("role", "status")

  const newGesture = () => (gesture += 1)
  const line = makeLine(model, show, (how) => {
    root.dataset.line = how
    if (how === "late") say("", setup.first && drawn === 1 ? NO_KERNEL : "waiting for Python, which is busy")
  }, setup.moves_under_way)
  const act = (action, by, own = newGesture(), more = {}) => {
    if (!busy && !ended) line.act({ do: action, by, view, gesture: own }, more)
  }

  function say(error, text, doubtful = false) {
    if (alarm.textContent !== error) alarm.textContent = error
    note.textContent = text
    note.classList.toggle("doubtful", doubtful)
  }

  function button(parent, text, title, onclick, ...classes) {
    return make(parent, "button", { type: "button", textContent: text, title, onclick }, ...classes)
  }

  // Tools

  const tools = {}
  for (const [name, [text, title]] of Object.entries(TOOLS)) {
    tools[name] = button(bar, text, title, () => choose(name))
  }
  function choose(name) {
    tool = name
    for (const [other, one] of Object.entries(tools)) one.ariaPressed = String(other === name)
    root.dataset.tool = name
  }
  choose(tool)
  const check = (parent, text, title, properties) => {
    const label = make(parent, "label", { title })
    const box = make(label, "input", { type: "checkbox", ...properties })
    label.append(` ${text}`)
    return box
  }
  const fine = check(bar, "fine", "everything by a tenth (f)", {})
  const undo = button(bar, "↶ Undo", "Undo the last gesture, number, jump or refinement (u, ctrl-z)", () => act("undo"))
  const redo = button(bar, "↷ Redo", "Redo (ctrl-y)", () => act("redo"))
  const helps = button(bar, "?", "Gestures and keys (?)", () => openHelp(help.hidden), "help-button")
  helps.ariaLabel = "gestures and keys"
  const help = make(root, "dl", { hidden: true }, "help")
  root.insertBefore(help, body)
  for (const [keys, what] of Object.entries(HELP)) {
    make(help, "dt", { textContent: keys })
    make(help, "dd", { textContent: what })
  }
  function openHelp(open) {
    help.hidden = !open
    helps.ariaExpanded = String(open)
  }
  openHelp(false)

  // The panel: numbers, looks, views, ends

  const numbers = {}
  const fields = make(panel, "div", {}, "numbers")
  for (const [name, text] of Object.entries(setup.numbers)) {
    const label = make(fields, "label", { title: setup.views.length > 1 ? "of the first X-ray's camera" : "of the camera" })
    make(label, "span", { textContent: text })
    const field = make(label, "input", { type: "number", step: 1, name })
    field.onchange = () => {
      if (field.value !== "") act("move", { [name]: +field.value }, series(`type ${name}`))
    }
    numbers[name] = field
  }

  const select = (parent, text, options, onchange) => {
    const label = make(parent, "label", { textContent: `${text} ` })
    const one = make(label, "select")
    for (const [value, title] of options) make(one, "option", { value, textContent: value, title })
    one.onchange = () => onchange(one)
    return one
  }
  const looks = make(panel, "div", {}, "bar")
  const chosen = setup.looks.length
    ? select(looks, "look", setup.looks.map((name) => [name, DESCRIBED[name]]), (one) => setLook(one.value))
    : { value: "" }
  const alpha = make(make(looks, "label", { textContent: "X-ray " }), "input", { type: "range", min: 0, max: 1, step: 0.05 })
  alpha.parentNode.append(" CT")
  alpha.parentNode.title = "how much of the X-ray and of the rendering is shown"
  alpha.ariaLabel = "from the X-ray to the CT"
  alpha.value = setup.alpha
  alpha.oninput = () => line.show({ alpha: +alpha.value })
  const ghost = check(looks, "ghost", "outline of the last refined pose, in cyan (g)", { checked: true })
  ghost.onchange = () => line.show({ ghost: ghost.checked })
  looks.hidden = !setup.looks.length
  function setLook(name) {
    look = name
    chosen.value = name
    line.show({ look })
  }
  chosen.value = look

  const places = make(panel, "div", {}, "bar")
  const jump = select(places, "view", [["…", ""], ...setup.presets.map((name) => [name, ""])], (one) => {
    if (one.value !== "…") act("preset", one.value)
    one.value = "…"
  })
  jump.parentNode.title = "standard views of the CT's centre, for the X-ray that was touched last"
  button(places, "Antipode", "The same axis, seen from the opposite side", () => act("antipode"))
  button(places, "Reset", "The first pose", () => act("reset"))

  const ends = make(panel, "div", {}, "bar")
  for (const [name, title] of Object.entries(setup.ends)) {
    button(ends, name[0].toUpperCase() + name.slice(1), title, () => act(name), name)
  }

  // States

  async function show(state, parts) {
    const turn = (drawn += 1)
    ended = ended || Boolean(state.ended)
    busy = Boolean(state.working)
    root.ariaBusy = String(busy)
    say(state.error || "", state.note || "", state.doubtful)
    if (state.numbers) showNumbers(state)
    const pictures = await Promise.all(
      parts.map((part) => createImageBitmap(new Blob([part], { type: "image/jpeg" }))),
    )
    if (turn !== drawn) return // a newer one came meanwhile
    pictures.forEach((picture, n) => {
      const { canvas } = views[n]
      if (canvas.width !== picture.width) canvas.width = picture.width
      if (canvas.height !== picture.height) canvas.height = picture.height
      canvas.getContext("2d").drawImage(picture, 0, 0)
    })
    root.dataset.drawn = drawn
  }

  function showNumbers(state) {
    for (const [name, field] of Object.entries(numbers)) {
      if (!(field.matches(":focus") && gesture === typing)) field.value = (Math.round(100 * state.numbers[name]) / 100).toFixed(2)
      field.step = fine.checked ? 0.1 : 1
    }
    views.forEach(({ sides, similarity }, n) => {
      for (const [side, letters] of Object.entries(state.sides[n])) sides[side].textContent = letters
      similarity.textContent = state.similarity.length ? `similarity ${state.similarity[n].toFixed(3)}` : ""
    })
    undo.disabled = !state.undo
    redo.disabled = !state.redo
    ghost.disabled = !state.ghost
  }

  // Pictures as handles

  const step = () => (fine.checked ? 0.1 : 1)
  let last = { what: "", at: 0 }
  let typing = -1
  // One gesture for actions of a kind that follow one another
  function series(what) {
    const now = performance.now()
    const goes = last.what === `${what} ${view}` && now - last.at < SERIES
    last = { what: `${what} ${view}`, at: now }
    if (!goes) newGesture()
    if (what.startsWith("type")) typing = gesture
    return gesture
  }

  function touch(n) {
    view = n
    views.forEach(({ figure }, k) => figure.classList.toggle("touched", k === n && views.length > 1))
  }
  touch(0)

  const angle = (point, centre) => (180 / Math.PI) * Math.atan2(point.y - centre.y, point.x - centre.x)
  const between = (a, b) => ((b - a + 540) % 360) - 180 // Degrees from one direction to another

  const drag = (action, by) => act(action, by, gesture, { quick: true }) // Coarser pictures, which come faster
  const does = {
    turn: (by) => drag("turn", [DEGREES * by.right, DEGREES * by.down, 0]),
    move: (by) => drag("shift", [by.right * by.pixel.x, by.down * by.pixel.y, 0]),
    roll: (by) => drag("turn", [0, 0, by.swept]),
    depth: (by) => drag("shift", [0, 0, -MM * by.down]),
    window: (by) => drag("window", [by.right / 400, by.down / 400]),
  }

  function toolOf(event) {
    if (event.button === 2) return "depth"
    if (event.button === 1 || event.shiftKey) return "move"
    if (event.ctrlKey || event.metaKey) return "roll"
    return event.altKey ? "window" : tool
  }

  views.forEach(({ canvas }, n) => {
    const fingers = new Map()
    let active = tool

    const pixel = () => ({ x: canvas.width / canvas.clientWidth, y: canvas.height / canvas.clientHeight })
    const middle = () => {
      const box = canvas.getBoundingClientRect()
      return { x: box.left + box.width / 2, y: box.top + box.height / 2 }
    }

    canvas.onpointerdown = (event) => {
      touch(n)
      canvas.setPointerCapture(event.pointerId)
      canvas.focus({ preventScroll: true })
      event.preventDefault()
      if (!fingers.size) {
        active = toolOf(event)
        newGesture()
        last.what = ""
      }
      fingers.set(event.pointerId, { x: event.clientX, y: event.clientY })
    }

    canvas.onpointerup = canvas.onpointercancel = canvas.onlostpointercapture = (event) => {
      if (fingers.delete(event.pointerId) && !fingers.size) line.show({ quick: false })
    }

    canvas.onpointermove = (event) => {
      const from = fingers.get(event.pointerId)
      if (!from) return
      const to = { x: event.clientX, y: event.clientY }
      const share = step() / fingers.size
      const by = { right: share * (to.x - from.x), down: share * (to.y - from.y), pixel: pixel() }
      const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1]
      by.swept = step() * between(angle(from, other ?? middle()), angle(to, other ?? middle()))
      fingers.set(event.pointerId, to)
      if (!other) return does[active](by)
      const far = (point) => Math.hypot(point.x - other.x, point.y - other.y)
      does.move(by)
      does.roll(by)
      does.depth({ down: step() * (far(to) - far(from)) })
    }

    canvas.oncontextmenu = (event) => event.preventDefault()
    canvas.ondblclick = () => line.act({ do: "automatic", view: n })

    const wheel = (event) => {
      if (!canvas.matches(":focus")) return // the notebook scrolls
      event.preventDefault()
      touch(n)
      const way = Math.sign(event.deltaY || event.deltaX) * step()
      if (event.shiftKey) act("turn", [0, 0, way], series("roll"))
      else act("shift", [0, 0, NOTCH * way], series("depth"))
    }
    canvas.addEventListener("wheel", wheel, { passive: false })
    canvas.onfocus = () => touch(n)
  })

  // Keys

  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }
  const NUDGES = {
    "+": ["shift", NOTCH * -1],
    "=": ["shift", NOTCH * -1],
    "-": ["shift", NOTCH],
    ",": ["turn", -1],
    ".": ["turn", 1],
  }
  const SWITCHES = {
    u: () => act("undo"),
    f: () => fine.click(),
    g: () => ghost.click(),
    l: () => setup.looks.length && setLook(setup.looks[(setup.looks.indexOf(look) + 1) % setup.looks.length]),
    r: () => "refine" in setup.ends && act("refine"),
    s: () => act("save"),
    "?": () => openHelp(help.hidden),
    Escape: () => openHelp(false),
  }

  function pressed(event) {
    const command = event.ctrlKey || event.metaKey
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key
    if (command && key === "z") return () => act(event.shiftKey ? "redo" : "undo")
    if (command && key === "y") return () => act("redo")
    if (command || event.altKey) return null
    if (event.target.tagName === "CANVAS") {
      const kind = `${event.shiftKey ? "shift " : ""}key`
      if (key in ARROWS) {
        const [right, down] = ARROWS[key]
        return () => act(event.shiftKey ? "turn" : "shift", [step() * right, step() * down, 0], series(kind))
      }
      if (key in NUDGES) return () => act(NUDGES[key][0], [0, 0, step() * NUDGES[key][1]], series(NUDGES[key][0]))
      if (key === " " && setup.looks.length) return () => event.repeat || line.show({ look: "X-ray" })
    }
    return SWITCHES[key]
  }

  root.onkeydown = (event) => {
    if (event.target.matches("input:not([type=checkbox]), select")) return
    const what = pressed(event)
    if (!what) return
    event.preventDefault()
    event.stopPropagation()
    what()
  }
  root.onkeyup = (event) => {
    if (event.key === " " && event.target.tagName === "CANVAS") line.show({ look })
  }

  // JupyterLab takes a key for its own, say r to make the cell raw, unless the focused element itself says this
  for (const one of root.querySelectorAll("canvas, button, input, select")) {
    one.setAttribute("data-lm-suppress-shortcuts", "true")
  }
  if (setup.first) show(setup.first.state, setup.first.pictures)
  line.show({ look })
  return () => line.close()
}

export default { render }
