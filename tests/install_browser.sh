#!/usr/bin/env bash
# Installs Debian's chromium for the tests that look at the dashboard in a browser. Needs root; elsewhere it says why not.
set -euo pipefail

command -v chromium >/dev/null && exit 0
echo "install_browser: Debian's chromium, by apt-get"
command -v apt-get >/dev/null || { echo "install_browser: no chromium, and no apt-get to install it" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "install_browser: no chromium, and only root can install it" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
install() { timeout 300 apt-get install --yes --quiet --no-install-recommends chromium >/dev/null 2>&1; }
install || { timeout 120 apt-get update --quiet >/dev/null 2>&1 && install; } ||
    { echo "install_browser: apt-get could not install chromium" >&2; exit 1; }
