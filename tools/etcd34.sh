#!/usr/bin/env bash
# Prints the path of an etcd 3.4: the one named by TEST_ETCD_34, the one on PATH, or
# Debian's. That is unpacked into the folder given, and not installed: to install it would start a
# service, and put an older etcd on PATH than the one that everything else uses.
set -euo pipefail
folder=$1

is_34() {
  [[ $("$1" --version 2>/dev/null) == "etcd Version: 3.4."* ]]
}

for etcd in "${TEST_ETCD_34:-}" "$(command -v etcd || true)" "$folder/usr/bin/etcd"; do
  if [[ -x $etcd ]] && is_34 "$etcd"; then
    realpath -- "$etcd"
    exit
  fi
done

if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
  echo "no etcd 3.4 is here, and no apt-get to get one: name one by TEST_ETCD_34" >&2
  exit 1
fi
rm -rf -- "$folder"
mkdir -p -- "$folder"
cd -- "$folder"
if ! apt-get download -qq etcd-server >&2; then
  # Perhaps apt has no lists yet; only root may get them.
  apt-get update -qq >&2
  apt-get download -qq etcd-server >&2
fi
dpkg-deb -x etcd-server_*.deb .
rm etcd-server_*.deb
if ! is_34 usr/bin/etcd; then
  echo "this system's etcd-server is no 3.4 ($(usr/bin/etcd --version | head -1)): get an etcd 3.4," \
    "and name it by TEST_ETCD_34" >&2
  exit 1
fi
realpath usr/bin/etcd
