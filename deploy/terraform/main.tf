# kubernetes-keystone beside a control plane that is in the model already.
terraform {
  required_version = ">= 1.6"
  required_providers {
    juju = {
      source  = "juju/juju"
      version = ">= 1.0.0, < 2.0.0"
    }
  }
}

resource "juju_application" "kubernetes_keystone" {
  name       = var.name
  model_uuid = var.model_uuid

  charm {
    name     = "kubernetes-keystone"
    channel  = var.channel
    revision = var.revision
    base     = var.base
  }

  config = merge({ keystone-url = var.keystone_url }, var.config)
}

# A subordinate: it has a unit wherever the control plane has one, and none of its own.
resource "juju_integration" "control_plane" {
  model_uuid = var.model_uuid

  application {
    name     = var.control_plane
    endpoint = "juju-info"
  }

  application {
    name     = juju_application.kubernetes_keystone.name
    endpoint = "kubernetes-master"
  }
}
