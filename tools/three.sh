#!/bin/sh
# Makes xvr/three.min.js: the parts of three.js that xvr/scene.js uses, in one file. Needs npm. sh tools/three.sh
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y > npm.log
npm install --no-audit --no-fund three@0.183.2 esbuild@0.28.2 >> npm.log
cat > parts.js << 'JS'
export { Box3, DirectionalLight, HemisphereLight, PerspectiveCamera, Scene, Vector3, WebGLRenderer } from "three"
export { OrbitControls } from "three/addons/controls/OrbitControls.js"
export { GLTFLoader } from "three/addons/loaders/GLTFLoader.js"
JS
npx esbuild parts.js --bundle --minify --format=esm --legal-comments=inline --outfile="$root/xvr/three.min.js"
