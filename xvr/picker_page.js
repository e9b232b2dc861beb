// On the page of `xvr pick`: what a notebook's kernel is to the picker, the server is here
import picker from "./picker.js"

const setup = JSON.parse(document.getElementById("setup").textContent)
let listen = () => {}

// Takes so many bytes of an answer, when they have come; null after the last
function makeReader(stream) {
  const reader = stream.getReader()
  let rest = new Uint8Array()
  return async (size) => {
    while (rest.length < size) {
      const { done, value } = await reader.read()
      if (done) return null
      const longer = new Uint8Array(rest.length + value.length)
      longer.set(rest)
      longer.set(value, rest.length)
      rest = longer
    }
    const part = rest.slice(0, size)
    rest = rest.slice(size)
    return part
  }
}

// An answer is a series of states. Of each: the length of its JSON in four bytes, the JSON, and the pictures, whose
// lengths the JSON gives
async function hear(reply) {
  if (!reply.ok) throw new Error(`the server answered ${reply.status}`)
  const take = makeReader(reply.body)
  for (let head; (head = await take(4)); ) {
    const state = JSON.parse(new TextDecoder().decode(await take(new DataView(head.buffer).getUint32(0))))
    const pictures = []
    for (const size of state.sizes) pictures.push(await take(size))
    await listen(state, pictures)
  }
}

async function send(request) {
  const leaves = request.actions.some((action) => action.do === "done")
  try {
    await hear(await fetch(location.pathname, { method: "POST", body: JSON.stringify(request) }))
  } catch (error) {
    if (!leaves) return listen({ ended: true, error: "xvr pick has ended, or does not answer; see the terminal" })
  }
  if (leaves) listen({ ended: true, note: "xvr pick has ended; its result is in the terminal. This page can be closed." })
}

const model = {
  get: (name) => ({ setup })[name],
  on: (_, callback) => (listen = callback),
  off: () => (listen = () => {}),
  send,
}
picker.render({ model, el: document.getElementById("picker") })
document.querySelector("canvas").focus()
