#!/usr/bin/env bash
# Installs what the tests need beyond Rust: the JavaScript and Python clients (from their locked versions),
# the ACME test server, h2spec and Chromium. Does nothing where that is done already.
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "tests/setup.sh: $*" >&2; exit 1; }

need() {
  command -v "$1" >/dev/null || fail "$1 is missing: $2"
}

# up_to_date STAMP FILE...: what STAMP notes was made from these files as they are now.
up_to_date() {
  local stamp=$1; shift
  [[ -f $stamp && $(cat "$stamp") == "$(cat "$@" | sha256sum)" ]]
}

note() {
  local stamp=$1; shift
  cat "$@" | sha256sum >"$stamp"
}

javascript() {
  local from=(clients/js/package.json clients/js/package-lock.json) stamp=clients/js/node_modules/.installed
  up_to_date "$stamp" "${from[@]}" && return
  echo "tests/setup.sh: npm ci"
  (cd clients/js && npm ci --no-progress) || fail "npm ci failed in tests/clients/js"
  note "$stamp" "${from[@]}"
}

python() {
  local venv=clients/python/.venv from=clients/python/requirements.txt
  up_to_date "$venv/installed" "$from" && "$venv/bin/python" -c 'import centrifuge, fastapi, daphne' && return
  echo "tests/setup.sh: pip install"
  rm -rf "$venv"
  python3 -m venv "$venv" || fail "python3 cannot make a virtual environment (Debian: python3-venv)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$from" \
    || fail "pip install failed for tests/$from"
  note "$venv/installed" "$from"
}

# The ACME test server, in its version of tests/src/pebble.rs and where that looks for it.
pebble() {
  local version folder
  version=$(sed -n 's/^const VERSION: &str = "\(.*\)";$/\1/p' src/pebble.rs)
  folder=$(realpath -m "${CARGO_TARGET_DIR:-../target}")/tools/pebble-$version
  [[ -x $folder/pebble ]] && return
  need go "Go 1.24 or newer, from which the ACME test server is built"
  echo "tests/setup.sh: go install pebble@$version"
  GOBIN=$folder go install "github.com/letsencrypt/pebble/v2/cmd/pebble@$version" || fail "pebble cannot be built"
}

# The conformance suite of HTTP/2.
h2spec() {
  local folder
  folder=$(realpath -m "${CARGO_TARGET_DIR:-../target}")/tools/h2spec
  [[ -x $folder/h2spec ]] && return
  need go "Go 1.24 or newer, from which h2spec is built"
  echo "tests/setup.sh: go install h2spec"
  GOBIN=$folder go install "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible" || fail "h2spec cannot be built"
}

# The demo page is looked at in a real browser. WEIR_CHROMIUM names one that is elsewhere.
browser() {
  [[ -x ${WEIR_CHROMIUM:-/usr/bin/chromium} ]] && return
  [[ -z ${WEIR_CHROMIUM:-} ]] || fail "WEIR_CHROMIUM=$WEIR_CHROMIUM cannot be run"
  need apt-get "install Chromium by hand and name it in WEIR_CHROMIUM"
  local root=()
  [[ $(id -u) == 0 ]] || { need sudo "or install Chromium by hand"; root=(sudo); }
  echo "tests/setup.sh: apt-get install chromium"
  "${root[@]}" apt-get update -qq || fail "apt-get update failed"
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium \
    || fail "apt-get install chromium failed"
}

need node "Node.js 20 or newer"
need npm "it comes with Node.js"
need python3 "Python 3.10 or newer"
javascript
python
pebble
h2spec
browser
