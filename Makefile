# The commands of this tree. Each installs what it needs from Debian and Go.

GO ?= go

.PHONY: help build packages test lint bench demo fixes setup clean

help: ## list these commands
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

build: ## build the four programs into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/ ./cmd/...

packages: ## build the Debian packages into dist/
	./packaging/build.sh dist

setup: ## install what tests and demo need from Debian
	@./test/setup

test: setup ## run every check and test there is
	@$(GO) run ./test/report

lint: ## run the static checks alone
	@$(GO) run ./test/report -only lint

bench: ## measure the budgets, each beside its yardstick
	@$(GO) run ./test/bench
	$(GO) test -run '^$$' -bench . -benchmem ./...

demo: setup ## patch a real kernel in a virtual machine, from the signed stream
	@$(GO) run ./test/demo

FIXES ?= ../shared/fixes

fixes: setup ## build and load every fix of the folder FIXES, and write docs/fixes.md
	$(GO) run ./test/fixes -dir $(FIXES) -o docs/fixes.md

clean: ## remove what was built in the tree
	rm -rf bin dist
