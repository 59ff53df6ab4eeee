# make test is what has to pass; .ci/run calls nothing else.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PROGRAMS := mirror-shell mirrord post-receive pre-receive
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := v1.8.0
FUZZTIME ?= 20s
BENCH ?= .
PKG ?= ./...
SEED ?= 1
PUSHES ?= 1000
FAULTS ?= 300
DATABASE ?=
# What --version says. Without a repository go build finds nothing either.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)

.PHONY: build deb test setup check gofmt vet staticcheck govulncheck bench fuzz faults clean

# Without cgo the programs are static and run on any Linux of the same kind.
build:
	CGO_ENABLED=0 go build -trimpath -ldflags '-X mirror-shell/shell.Version=$(VERSION)' -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

# bin/mirror-shell_VERSION_ARCH.deb: make deb, or make deb GOARCH=arm64. Who builds it
# is its maintainer.
deb:
	contrib/packaging/build bin '$(VERSION)'

# -race needs cgo. The closing lines of go test come last.
test: setup check
	CGO_ENABLED=1 go test -race -timeout 20m $(PKG)

setup:
	.ci/setup

check: gofmt vet staticcheck govulncheck

gofmt:
	@files=$$(gofmt -l .); \
	if [ -n "$$files" ]; then echo "not formatted; run gofmt -w on:" $$files >&2; exit 1; fi

vet:
	go vet $(PKG)

staticcheck:
	go run $(STATICCHECK) $(PKG)

# Known vulnerabilities that our code calls. VULNDB=URL uses another database.
govulncheck:
	.ci/govulncheck $(GOVULNCHECK) $(PKG)

bench:
	go test -run '^$$' -bench '$(BENCH)' -benchmem $(PKG)
	MIRROR_SHELL_BENCH=1 go test -v -count=1 -timeout 60m -run '^TestBench$$' ./internal/bench

# Each fuzz target for FUZZTIME: make fuzz FUZZTIME=5m PKG=./shell
fuzz:
	@packages=$$(go list $(PKG)); \
	for package in $$packages; do \
	  targets=$$(go test -list '^Fuzz' $$package); \
	  for target in $$(grep '^Fuzz' <<<"$$targets" || true); do \
	    echo "== $$package $$target"; \
	    go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package; \
	  done; \
	done

# Random pushes while everything is broken that can break; see internal/faults. What
# a run that fails leaves is in the directory that it names. DATABASE=1 breaks the jobs
# table, too.
faults:
	MIRROR_SHELL_FAULTS_SEED=$(SEED) MIRROR_SHELL_FAULTS_PUSHES=$(PUSHES) MIRROR_SHELL_FAULTS_FAULTS=$(FAULTS) \
	MIRROR_SHELL_FAULTS_DATABASE=$(DATABASE) \
	  go test -v -count=1 -timeout 4h -run '^TestFaults$$' ./internal/faults

clean:
	rm -rf bin
