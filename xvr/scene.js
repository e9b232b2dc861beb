// The view of a scene that can be turned. three.js and the glTF file lie in the page; without WebGL its picture stays.
"use strict"

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0))
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer()
}

async function library() {
  const address = URL.createObjectURL(new Blob([await unpack("scene-three")], { type: "text/javascript" }))
  try {
    return await import(address)
  } finally {
    URL.revokeObjectURL(address)
  }
}

async function startScene() {
  const figure = document.getElementById("scene")
  const controls = document.getElementById("scene-controls")
  const seen = document.getElementById("seen")
  const picture = figure.querySelector("img")
  if (!document.createElement("canvas").getContext("webgl2")) {
    seen.textContent = "This browser has no WebGL, so the picture cannot be turned."
    return
  }
  const [three, glb] = [await library(), await unpack("scene-glb")]
  const place = JSON.parse(figure.dataset.place)
  const vector = (name) => new three.Vector3(...place[name])
  const model = (await new three.GLTFLoader().parseAsync(glb, "")).scene
  const space = new three.Scene().add(model, new three.HemisphereLight(0xffffff, 0x8f8f8f, 2))
  const camera = new three.PerspectiveCamera(30)
  const light = new three.DirectionalLight(0xffffff, 1.5)
  light.position.set(-1, 1, 1)
  space.add(camera.add(light))
  const parts = {}
  model.traverse((part) => {
    if (!part.isMesh) return
    ;(parts[part.name.split("_")[0]] ??= []).push(part)
    part.geometry.computeVertexNormals()
    part.material.flatShading = false
  })
  const renderer = new three.WebGLRenderer({ antialias: true, alpha: true })
  const canvas = renderer.domElement
  canvas.style.display = "" // the page's style has it, and on paper no canvas
  renderer.setPixelRatio(devicePixelRatio)
  Object.entries({ role: "application", tabindex: 0, "aria-label": "3D view. " + picture.alt }).forEach((pair) =>
    canvas.setAttribute(...pair),
  )
  picture.after(canvas)
  figure.classList.add("live")
  controls.hidden = false

  const box = new three.Box3().setFromObject(model)
  const [middle, radius] = [box.getCenter(new three.Vector3()), box.getSize(new three.Vector3()).length() / 2]
  camera.near = radius / 200
  camera.far = 20 * radius
  camera.up = vector("up").normalize()
  const orbit = new three.OrbitControls(camera, canvas)
  orbit.enableZoom = false // until the view has the focus, the wheel scrolls the page
  canvas.style.touchAction = "pan-y"
  canvas.addEventListener("focus", () => (orbit.enableZoom = true))
  canvas.addEventListener("blur", () => (orbit.enableZoom = false))
  canvas.addEventListener("pointerdown", () => canvas.focus())

  const draw = () => renderer.render(space, camera)
  const show = (kind, visible) => {
    controls.elements[kind].checked = visible
    for (const part of parts[kind]) part.visible = visible
  }
  const look = (from, to, angle, clear, text) => {
    for (const kind of ["camera", "initial", "path"]) if (parts[kind]) show(kind, !clear)
    camera.fov = angle
    camera.position.copy(from)
    orbit.target.copy(to)
    for (const { material } of parts.bones ?? parts.patient ?? []) {
      Object.assign(material, { transparent: clear, opacity: clear ? 0.5 : 1, needsUpdate: true })
    }
    camera.updateProjectionMatrix()
    orbit.update()
    draw()
    seen.textContent = text
  }
  const away = vector("towards").setLength((0.76 * radius) / Math.sin(Math.PI / 12))
  const overlaid = "Seen from the source: where the pose is right, the bones lie over those of the X-ray."
  const views = {
    oblique: () => look(away.clone().add(middle), middle, 30, false, ""),
    source: () => look(vector("source"), vector("middle"), 1.1 * place.angle, true, overlaid),
  }
  const turn = (axis, angle) => {
    camera.position.sub(orbit.target).applyAxisAngle(axis, angle).add(orbit.target)
    orbit.update()
    draw()
  }
  const side = () => new three.Vector3().setFromMatrixColumn(camera.matrix, 0)
  const nearer = (factor) => {
    camera.position.sub(orbit.target).multiplyScalar(factor).add(orbit.target)
    orbit.update()
    draw()
  }
  const keys = {
    ArrowLeft: () => turn(camera.up, -0.1),
    ArrowRight: () => turn(camera.up, 0.1),
    ArrowUp: () => turn(side(), -0.1),
    ArrowDown: () => turn(side(), 0.1),
    "+": () => nearer(0.9),
    "-": () => nearer(1 / 0.9),
    o: views.oblique,
    s: views.source,
  }
  const press = (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || !keys[event.key]) return
    event.preventDefault()
    keys[event.key]()
  }
  canvas.addEventListener("keydown", press)
  controls.addEventListener("keydown", press)
  controls.addEventListener("click", (event) => views[event.target.closest("button")?.name]?.())
  controls.addEventListener("change", ({ target }) => {
    show(target.name, target.checked)
    draw()
  })
  orbit.addEventListener("change", draw)
  document.getElementById("scene-file").href = URL.createObjectURL(new Blob([glb], { type: "model/gltf-binary" }))
  new ResizeObserver(([{ contentRect }]) => {
    const [wide, high] = [contentRect.width, (contentRect.width * 3) / 4]
    camera.aspect = wide / high
    camera.updateProjectionMatrix()
    renderer.setSize(wide, high)
    draw()
  }).observe(figure)
  views.oblique()
}

if (document.getElementById("scene")) startScene()
