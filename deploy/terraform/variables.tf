variable "model_uuid" {
  description = "The UUID of the model that the control plane is in."
  type        = string
}

variable "keystone_url" {
  description = "Keystone's identity endpoint, for example https://keystone.example:5000/v3; none where Keystone's own charm tells it."
  type        = string
  default     = null
}

variable "integrations" {
  description = "Further relations, by this charm's endpoint, for example { keystone-credentials = { name = \"keystone\", endpoint = \"identity-credentials\" } }."
  type        = map(object({ name = string, endpoint = string }))
  default     = {}
}

variable "control_plane" {
  description = "The control plane's application: kubernetes-control-plane, k8s, microk8s, or what it was deployed as."
  type        = string
  default     = "kubernetes-control-plane"
}

variable "name" {
  description = "What to call the application."
  type        = string
  default     = "kubernetes-keystone"
}

variable "config" {
  description = "The charm's other options by name, all as text, for example { policy = file(\"policy.yaml\") }."
  type        = map(string)
  default     = {}
}

variable "channel" {
  description = "Charmhub's channel."
  type        = string
  default     = "latest/stable"
}

variable "revision" {
  description = "The charm's revision; the channel's newest where none is given."
  type        = number
  default     = null
}

variable "base" {
  description = "The base of the control plane's machines."
  type        = string
  default     = "ubuntu@24.04"
}
