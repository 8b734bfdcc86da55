output "name" {
  description = "The application's name, for further integrations."
  value       = juju_application.kubernetes_keystone.name
}
