#!/usr/bin/env bash
# Makes .venv with what medgen needs. Usage: infra/setup.sh [test]
#
# "test" also asks for the programs that only the tests use. A second run does nothing while pyproject.toml and
# constraints.txt stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."

WANTED=${1:-demo}
STAMP=.venv/medgen-setup.sha256

say() { echo "medgen: $*" >&2; }
fail() { say "$*"; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# quietly WHAT COMMAND... runs a command and shows its output only when it fails.
quietly() {
    local what=$1 log
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        rm -f "$log"
        say "$what failed"
        return 1
    fi
    rm -f "$log"
}

python_is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# The distribution's comes first: Debian and Ubuntu build theirs with profile-guided optimisation, which pyenv does not
# by default; with theirs imports take a sixth less time.
find_python() {
    local python without_venv='' distribution=() others=()
    while read -r python; do
        if [[ $python == /usr/bin/* ]]; then distribution+=("$python"); else others+=("$python"); fi
    done < <(type -aP python3 python3.13 python3.12 python3.11 || true)
    for python in ${PYTHON:-} "${distribution[@]}" "${others[@]}"; do
        if has "$python" && python_is_recent "$python"; then
            if has_venv "$python"; then
                echo "$python"
                return
            fi
            without_venv=${without_venv:-$python}
        fi
    done
    [ -z "$without_venv" ] ||
        fail "$without_venv has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)"
    fail "needs Python 3.11 or newer: install it (Debian 12+, Ubuntu 24.04+: apt-get install python3 python3-venv)" \
        "or name one: PYTHON=/path/to/python3.11 make setup"
}

make_environment() {
    local python
    if ! { [ -x .venv/bin/python ] && python_is_recent .venv/bin/python; }; then
        python=$(find_python)
        say "making .venv with $("$python" --version)"
        quietly "making .venv" "$python" -m venv .venv
    fi
    # uv reads its certificates from SSL_CERT_FILE, where pip has PIP_CERT.
    if [ -z "${SSL_CERT_FILE:-}" ] && [ -n "${PIP_CERT:-}" ]; then
        export SSL_CERT_FILE=$PIP_CERT
    fi
    if [ ! -x .venv/bin/uv ]; then
        if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
            quietly "installing pip" .venv/bin/python -m ensurepip
        fi
        quietly "installing uv" .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
    fi
    say "installing the packages of constraints.txt (about 7 GB with PyTorch; minutes on the first run)"
    # Compiled once, here: a process that may not write bytecode would compile every module it imports, each time.
    quietly "installing the packages" \
        .venv/bin/uv pip install --compile-bytecode --python .venv/bin/python -e '.[test]' -c constraints.txt
}

# install_programs PACKAGE... installs Debian packages where this user may.
install_programs() {
    local as_root=()
    has apt-get || return 1
    if [ "$(id -u)" -ne 0 ]; then
        { has sudo && sudo -n true 2>/dev/null; } || return 1
        as_root=(sudo -n)
    fi
    say "installing $*"
    quietly "apt-get update" "${as_root[@]}" apt-get -qq update || return 1
    quietly "apt-get install" "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install -y --no-install-recommends "$@"
}

current=$(sha256sum pyproject.toml constraints.txt)
if [ ! -x .venv/bin/medgen ] || [ "$(cat "$STAMP" 2>/dev/null)" != "$current" ]; then
    rm -f "$STAMP"
    make_environment
    echo "$current" >"$STAMP"
fi

missing=()
has tesseract || missing+=(tesseract-ocr)
if [ "$WANTED" = test ]; then
    has chromium || has chromium-browser || has google-chrome || missing+=(chromium)
    has docker-compose || docker compose version >/dev/null 2>&1 || missing+=(docker-compose)
fi
if [ ${#missing[@]} -gt 0 ] && ! install_programs "${missing[@]}"; then
    if [ "$WANTED" = test ]; then
        fail "the tests need: sudo apt-get install ${missing[*]}"
    fi
    say "for OCR by Tesseract (not the default) run: sudo apt-get install ${missing[*]}"
fi
