//go:build tools

// Package tools names what this module pins, so that "go mod tidy" keeps it.
package tools

import _ "github.com/distribution/distribution/v3/cmd/registry"
