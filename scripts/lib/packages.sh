# Sourced: what the system must have, from scripts/packages.txt.
# shellcheck shell=bash

present() { # does probe $1 hold, with interpreter $2 (may be empty)?
    local what=${1#*:}
    case $1 in
        python) [[ -n $2 ]] ;;
        python:*) [[ -n $2 ]] && "$2" -I -c "import $what" 2>/dev/null ;;
        python-header)
            [[ -n $2 ]] && "$2" -I -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
            ;;
        command:*) command -v "$what" >/dev/null ;;
        header:*) printf '#include <%s>\n' "$what" | gcc -E - >/dev/null 2>&1 ;;
        *) die "scripts/packages.txt: no such probe: $1" ;;
    esac
}

# require WHO...: make sure that what the list gives for these is there. On Debian and its kin the missing packages
# are installed by name; elsewhere they are named and the script ends.
require() {
    local python package who probe purpose pass missing=() lines=()
    for pass in first second; do
        python=$(interpreter) || python=''
        if [[ -z $python && -n ${PYRUN_PYTHON-} ]]; then
            die "PYRUN_PYTHON names no Python of at least 3.11: $PYRUN_PYTHON"
        fi
        missing=() lines=()
        while read -r package who probe purpose; do
            [[ -n $package && $package != \#* && " $* " == *" $who "* ]] || continue
            present "$probe" "$python" && continue
            missing+=("$package")
            lines+=("    $package  ($probe: $purpose)")
        done <"$ROOT/scripts/packages.txt"
        ((${#missing[@]})) || return 0
        [[ $pass == first ]] || break
        command -v apt-get >/dev/null || break
        install_packages "${missing[@]}"
    done
    if command -v apt-get >/dev/null; then
        printf '%s: still missing after the installation:\n' "$PROGRAM" >&2
    else
        printf '%s: missing here, by the names Debian gives them:\n' "$PROGRAM" >&2
    fi
    printf '%s\n' "${lines[@]}" >&2
    die "install these, then call it again (PYRUN_PYTHON names an interpreter of your choice)"
}

install_packages() {
    local sudo=() guard=''
    if ((EUID)); then
        command -v sudo >/dev/null || die "missing: $*. Run as root: apt-get install $*"
        # Asked here, where there is a terminal to answer on.
        sudo -n true 2>/dev/null || { [[ -t 0 ]] && sudo -v; } || die "missing: $*. Run: sudo apt-get install $*"
        sudo=(sudo -n)
    fi
    if ! apt-get install --simulate -qq "$@" >/dev/null 2>&1; then
        step "reading the package lists" "${sudo[@]}" apt-get update -q
    fi
    # Some of these packages bring a service (docker-registry listens on port 5000): it must not start. Debian
    # policy 9.3.3.2 gives policy-rc.d to say so; one that is there already is left alone.
    if [[ -d /run/systemd/system && ! -e /usr/sbin/policy-rc.d ]]; then
        guard=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$guard" >/dev/null
        "${sudo[@]}" chmod 755 "$guard"
        INSTALL_GUARD=("${sudo[@]}" rm -f -- "$guard")
    fi
    step "installing $*" "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends "$@"
    if [[ -n $guard && " $* " == *" docker-registry "* ]]; then
        "${sudo[@]}" systemctl disable --quiet docker-registry.service || true
    fi
    remove_guard
}

remove_guard() { # for a script's EXIT trap, too
    [[ -z ${INSTALL_GUARD[*]-} ]] || "${INSTALL_GUARD[@]}"
    INSTALL_GUARD=()
}
