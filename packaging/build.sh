#!/bin/sh
# Build the Debian packages:
#
#   packaging/build.sh [DIR [PACKAGE...]]
#
# into DIR (default dist), all three when none is named. ARCH is amd64, arm64 or
# s390x (default: this machine's). The same commit gives the same bytes: times are
# the commit's, paths are trimmed, and nothing else goes in. STAMP=false leaves the
# commit out.
set -eu
cd "$(dirname "$0")/.."
out=${1:-dist}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- livepatch livepatch-server livepatch-admin

if git rev-parse --verify --quiet HEAD >/dev/null 2>&1; then
	: "${STAMP:=true}"
	: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct)}"
fi
: "${STAMP:=false}"
: "${SOURCE_DATE_EPOCH:=$(stat -c %Y CHANGELOG.md)}"
: "${ARCH:=$(go env GOARCH)}"
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT

export SOURCE_DATE_EPOCH ARCH STAGE TZ=UTC LC_ALL=C CGO_ENABLED=0
umask 022
mkdir -p "$out" "$STAGE/bin" "$STAGE/docs" "$STAGE/completion" "$STAGE/man"

# manual FILE...: compress, without the name and time gzip would add.
manual() {
	for page in "$@"; do gzip -9 -n "$page"; done
}

# program NAME: the program for the package.
program() {
	GOARCH=$ARCH go build -trimpath -buildvcs=$STAMP -ldflags='-s -w' -o "$STAGE/bin/$1" "./cmd/$1"
}

# texts NAME: completion and manual pages, from a build for this machine.
texts() {
	go build -tags docs -trimpath -buildvcs=false -o "$STAGE/docs/$1" "./cmd/$1"
	for shell in bash zsh fish; do
		"$STAGE/docs/$1" completion $shell >"$STAGE/completion/$1.$shell"
	done
	mkdir "$STAGE/man/$1"
	"$STAGE/docs/$1" write-manual "$STAGE/man/$1"
	manual "$STAGE/man/$1"/*.1
}

go -C tools build -trimpath -buildvcs=false -o "$STAGE/mkdeb" ./mkdeb
gzip -9 -n -c CHANGELOG.md >"$STAGE/changelog.gz"
for package in "$@"; do
	program "$package"
	texts "$package"
	if [ "$package" = livepatch ]; then
		program livepatchd
		cp packaging/livepatch/livepatchd.8 packaging/livepatch/livepatch.yaml.5 "$STAGE/man"
		manual "$STAGE/man/livepatchd.8" "$STAGE/man/livepatch.yaml.5"
	fi
	# The version is the one that Go stamped into the program, in Debian's order:
	# v0.2.0-0.2026... comes before 0.2.0.
	VERSION=$(go version -m "$STAGE/bin/$package" | awk '$1 == "mod" { print $3 }' | sed 's/^v//; s/-/~/g')
	case $VERSION in
	[0-9]*) ;;
	*) VERSION=0.0.0~devel ;;
	esac
	export VERSION
	rm -f "$out/${package}"_*_"$ARCH.deb"
	"$STAGE/mkdeb" "packaging/$package/nfpm.yaml" "$out"
done
