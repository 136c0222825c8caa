#!/usr/bin/env bash
# Sees to it that a Docker engine answers, and that there is a Compose: installs them (Debian and
# Ubuntu, as root) and starts the engine if none answers. May be run again at any time; what is there
# already is left as it is.
set -euo pipefail

say() { echo "docker engine: $*"; }
fail() { echo "docker engine: $*" >&2; exit 1; }
answers() { timeout 30 docker info >/dev/null 2>&1; }
version() { docker version --format '{{.Server.Version}}'; }

START_SECONDS=${START_SECONDS:-120}
LOG=${LOG:-/var/log/dockerd.log}

# Debian calls the package of either release so, Ubuntu that of the second one docker-compose-v2.
compose() {
  if docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1; then
    return
  fi
  command -v apt-get >/dev/null && [ "$(id -u)" -eq 0 ] ||
    fail "there is no docker compose, and this script can install it only as root, with apt-get"
  export DEBIAN_FRONTEND=noninteractive
  local package=docker-compose
  apt-get update -qq || fail "apt-get update failed"
  ! apt-cache show docker-compose-v2 >/dev/null 2>&1 || package=docker-compose-v2
  say "installing the package $package"
  apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
    fail "apt-get install $package failed"
}

if command -v docker >/dev/null && answers; then
  say "version $(version) answers already"
  compose
  exit 0
fi
[ "$(uname -s)" = Linux ] || fail "none answers, and this script can start one on Linux only:" \
  "start yours (Docker Desktop, colima, ...) and run again"
[ "$(id -u)" -eq 0 ] || fail "none answers to this user ($(docker info 2>&1 | tail -n 1));" \
  "run this script as root, or add the user to the group docker"

if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
  command -v apt-get >/dev/null || fail "not installed, and there is no apt-get to install it" \
    "with: install Docker in this system's own way and run again"
  say "installing the package docker.io"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || fail "apt-get update failed"
  apt-get install -y -qq --no-install-recommends docker.io >/dev/null ||
    fail "apt-get install docker.io failed"
fi

if [ -d /run/systemd/system ]; then
  say "starting the service"
  systemctl start docker || fail "systemctl start docker failed; see journalctl -u docker"
else
  say "starting dockerd; its log is $LOG"
  # A session of its own: it outlives this script and the terminal.
  setsid nohup dockerd >>"$LOG" 2>&1 </dev/null &
  daemon=$!
fi

until answers; do
  if [ -n "${daemon:-}" ] && ! kill -0 "$daemon" 2>/dev/null; then
    tail -n 15 "$LOG" >&2
    fail "dockerd ended at once; above is the end of its log"
  fi
  if [ "$SECONDS" -ge "$START_SECONDS" ]; then
    [ -z "${daemon:-}" ] || tail -n 15 "$LOG" >&2
    fail "does not answer after $START_SECONDS s"
  fi
  sleep 0.5
done
say "version $(version) answers after $SECONDS s"
compose
