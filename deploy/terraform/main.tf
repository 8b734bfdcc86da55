# kubernetes-keystone beside a control plane that is in the model already.
terraform {
  required_version = ">= 1.6"
  required_providers {
    juju = {
      source = "juju/juju"
      # 1.x for a controller of Juju 2.9; 2.x for 3 and 4. They differ in nothing that is used here.
      version = ">= 1.0.0, < 3.0.0"
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

  config = merge(var.keystone_url == null ? {} : { keystone-url = var.keystone_url }, var.config)
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

  # A new base is a new application; what it was related to goes with the old one.
  lifecycle {
    replace_triggered_by = [juju_application.kubernetes_keystone.charm[0].base]
  }
}

resource "juju_integration" "other" {
  for_each   = var.integrations
  model_uuid = var.model_uuid

  application {
    name     = each.value.name
    endpoint = each.value.endpoint
  }

  application {
    name     = juju_application.kubernetes_keystone.name
    endpoint = each.key
  }

  lifecycle {
    replace_triggered_by = [juju_application.kubernetes_keystone.charm[0].base]
  }
}
