#!/usr/bin/env bash
# Makes a base image where no registry can be reached: Debian with its python3, from the mirror that
# apt uses here. As root, on Debian. An image of that name that is there already is left as it is.
#
#     tools/debian_base.sh clusterkit-base:debian
set -euo pipefail
tag=$1

fail() { echo "base image: $*" >&2; exit 1; }

if docker image inspect "$tag" >/dev/null 2>&1; then
  echo "base image: $tag is there"
  exit 0
fi
if ! command -v debootstrap >/dev/null; then
  command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] ||
    fail "there is no debootstrap; install it (on Debian, as root: apt-get install debootstrap)"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || fail "apt-get update failed"
  apt-get install -y -qq --no-install-recommends debootstrap >/dev/null ||
    fail "apt-get install debootstrap failed"
fi
[ "$(id -u)" -eq 0 ] || fail "debootstrap needs root"

# The release of this machine, as its mirror has that one for certain. Both forms of apt's lists.
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(CODENAME) $(SITE)' 'Created-By: Packages' |
  awk -v suite="$suite" '$1 == suite { print $2; exit }')
[ -n "$suite" ] && [ -n "$mirror" ] || fail "apt here knows no mirror of a Debian release"

folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
debootstrap --variant=minbase --include=python3 "$suite" "$folder" "$mirror" \
  >"$folder.log" 2>&1 || { tail -n 15 "$folder.log" >&2; fail "debootstrap failed"; }
rm -f -- "$folder.log"
# What only installing needs stays out.
tar -C "$folder" --exclude=./var/cache/apt --exclude=./var/lib/apt/lists -c . |
  docker import - "$tag" >/dev/null
echo "base image: made $tag, Debian $suite, in $SECONDS s"
