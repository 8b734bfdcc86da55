//go:build tools

// Package tools names what this module pins, so that "go mod tidy" keeps it.
package tools

import (
	_ "k8s.io/cloud-provider-openstack/cmd/client-keystone-auth"
	_ "k8s.io/cloud-provider-openstack/cmd/k8s-keystone-auth"
)
