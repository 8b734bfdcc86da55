"""Keystone's projects and role assignments as Kubernetes' namespaces and RoleBindings.

`config` what the operator wants, `names` what things are called, `plan` what would have to change (these three ask
nobody anything), `directory` what Keystone has, `cluster` what the cluster has and changing it, `passes` all of it at
once, `logins` what one review tells, `lease` which unit does the passes, `following` putting these into the service.
"""
