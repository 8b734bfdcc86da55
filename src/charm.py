#!/usr/bin/env python3
"""The front door: every event ends in one reconcile, the status is worked out once at its end, actions are handed over.

Not here: how anything is done. Options are in config.py, the service in authenticator.py, certificates and kubeconfigs
in webhook.py, an operator's own k8s-keystone-auth in upstream.py, the API server's flags in flags.py and apiserver/,
what an operator is told in told.py, a monitoring agent in observability.py.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Mapping

import ops

import release

try:
    import actions
    import again
    import apiserver
    import authenticator
    import certificates
    import check_authentication
    import cluster_user
    import files
    import flags
    import horizon
    import keystone_charm
    import kubeconfigs
    import manual
    import observability
    import owner
    import reach
    import secret
    import told
    import upstream
    import webhook
    import which_juju
    from authenticator import Backend, Backends, WorkloadError
    from config import RESOURCE, CharmConfig, load
    from errors import Blocked, OperatorError, Waiting
    from files import NAME, Places
except ImportError as error:
    release.end(error)

logger = logging.getLogger(__name__)
RELATION = "kubernetes-master"


class KubernetesKeystoneCharm(ops.CharmBase):
    """Keystone accounts for the Kubernetes control plane that this unit is subordinate to."""

    places = Places()

    def __init__(self, framework: ops.Framework):
        super().__init__(framework)
        self._verdict: ops.StatusBase | None = None
        # A line for each connection and each answer; ops hands everything to Juju's log.
        logging.getLogger("urllib3").setLevel(logging.WARNING)
        relation, keystone = self.on[RELATION], self.on[keystone_charm.RELATION]
        agent, issuer = self.on[observability.RELATION], self.on[certificates.RELATION]
        # Not install: Juju has the unit enter its relation after it, and the relation's first event follows at once.
        for event in (
            self.on.start,
            self.on.config_changed,
            self.on.update_status,
            self.on.upgrade_charm,
            self.on.secret_changed,
            relation.relation_created,
            relation.relation_joined,
            relation.relation_changed,
            relation.relation_broken,
            keystone.relation_created,
            keystone.relation_joined,
            keystone.relation_changed,
            keystone.relation_departed,
            keystone.relation_broken,
            issuer.relation_created,
            issuer.relation_changed,
            issuer.relation_broken,
            agent.relation_created,
            agent.relation_joined,
        ):
            framework.observe(event, self._on_any_event)
        for event in (self.on.stop, self.on.remove):
            framework.observe(event, self._on_end)
        framework.observe(self.on.collect_unit_status, self._on_collect_status)
        framework.observe(self.on.reload_policy_action, self._on_reload_policy)
        framework.observe(self.on.check_access_action, self._on_check_access)
        framework.observe(self.on.show_webhook_config_action, self._on_show_webhook_config)
        framework.observe(self.on.get_kubeconfig_action, self._on_get_kubeconfig)
        framework.observe(self.on.get_horizon_settings_action, self._on_get_horizon_settings)
        framework.observe(self.on.check_authentication_action, self._on_check_authentication)
        framework.observe(self.on.sync_action, self._on_sync)

    @property
    def place(self) -> apiserver.Place:
        """Where the wiring keeps its own."""
        return apiserver.Place(root=self.places.root, unit=self.unit.name)

    def _on_any_event(self, _: ops.EventBase) -> None:
        # In relation-broken the relation is still listed, but no longer active.
        related = any(relation.active for relation in self.model.relations[RELATION])
        self._verdict = self._settle(self._bring_into_force if related else self._take_away)
        ours = owner.other(self.places, self.unit.name) is None
        if related and ours:
            self._verdict = self._settle(lambda verdict=self._verdict: self._look_again(verdict))
        observability.publish(self, running=ours and authenticator.is_installed(self.places))

    def _look_again(self, verdict: ops.StatusBase) -> ops.StatusBase:
        """Where something is waited for, have the next hook soon; what was refused at once leaves nothing behind."""
        waiting = isinstance(verdict, ops.WaitingStatus)
        if waiting or authenticator.is_installed(self.places):
            again.install(self.places, self.unit.name)
        again.soon(wanted=waiting)
        return verdict

    def _on_end(self, event: ops.EventBase) -> None:
        self._verdict = self._settle(self._take_away)
        wired = owner.other(self.places, self.unit.name) is None and apiserver.wired(self.place) is not None
        undone = isinstance(self._verdict, ops.BlockedStatus) or wired
        if isinstance(event, ops.RemoveEvent) and undone:
            # The last chance to be heard: after this event the unit, and its status, are gone.
            raise RuntimeError(f"cannot be removed cleanly: {self._verdict.message}")

    def _on_collect_status(self, event: ops.CollectStatusEvent) -> None:
        if self._verdict is not None:
            event.add_status(self._verdict)

    def _on_reload_policy(self, event: ops.ActionEvent) -> None:
        self._act(event, lambda: actions.reload_policy(self.places, self._config()))

    def _on_check_access(self, event: ops.ActionEvent) -> None:
        self._act(event, lambda: actions.check_access(self.places, event.load_params(actions.Access)))

    def _on_show_webhook_config(self, event: ops.ActionEvent) -> None:
        related = self.model.relations[RELATION]
        principal = related[0].app.name if related else "kubernetes-control-plane"
        self._act(event, lambda: actions.show_webhook_config(self.places, self.place, self._config(), principal))

    def _on_get_kubeconfig(self, event: ops.ActionEvent) -> None:
        self._act(event, lambda: kubeconfigs.make(*self._for_users(), event.load_params(kubeconfigs.Wanted)))

    def _on_get_horizon_settings(self, event: ops.ActionEvent) -> None:
        self._act(event, lambda: horizon.make(*self._for_users(), event.load_params(horizon.Wanted)))

    def _for_users(self) -> tuple[Places, apiserver.Layout | None, CharmConfig]:
        """Give what files for users are made from."""
        config = self._config()
        return self.places, actions.layout_at_hand(self.place, config), config

    def _on_check_authentication(self, event: ops.ActionEvent) -> None:
        def checked() -> dict[str, str]:
            asked = event.load_params(check_authentication.Asked)
            token = self._token(asked.token_secret, asked.token_file)
            report = check_authentication.check(self.places, self.place, self._config(), token, asked.namespace)
            if report.failure:
                event.fail(told.shown(report.failure))
            return report.results

        self._act(event, checked)

    def _token(self, name: str, file: str) -> str:
        """Give the token that an action is about, which is never a parameter itself."""
        if bool(name) == bool(file):
            raise Blocked(
                "give either token-secret= (a Juju secret's ID) or token-file= (a path on this unit's machine)"
            )
        if file:
            return check_authentication.of_file(file)
        content = secret.granted(self.model, "token-secret", name)
        return check_authentication.clean(content.get("token", ""), "token-secret (its key token)")

    def _on_sync(self, event: ops.ActionEvent) -> None:
        self._act(event, lambda: actions.sync(self.places, self._config(), event.load_params(actions.SyncParameters)))

    def _act(self, event: ops.ActionEvent, action: Callable[[], Mapping[str, str | int]]) -> None:
        try:
            owner.check(self.places, self.unit.name)
            event.set_results(dict(action()))
        except (OperatorError, WorkloadError, apiserver.WiringError) as error:
            event.fail(told.shown(error))

    def _settle(self, steps: Callable[[], ops.StatusBase]) -> ops.StatusBase:
        """Run the steps; what stops them becomes the status, and only faults of ours end with a traceback."""
        try:
            return steps()
        except (Waiting, apiserver.NotFound, apiserver.NotReady, apiserver.NotOurTurn) as error:
            logger.info("waiting: %s", error)
            return ops.WaitingStatus(told.shown(error))
        except apiserver.ApplyFailed as error:
            for line in error.log:
                logger.error("API server: %s", line)
            logger.error("blocked: %s", error)
            return ops.BlockedStatus(f"{told.shown(error)}. To try again: set api-server=manual, then api-server=auto")
        except (OperatorError, WorkloadError, apiserver.WiringError) as error:
            logger.error("blocked: %s", error)
            return ops.BlockedStatus(told.shown(error))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise
            message = f"{told.shown(error)}: make room, or the disk writable; the next hook tries again"
            logger.error("blocked: %s", message)
            return ops.BlockedStatus(message)

    def _config(self) -> CharmConfig:
        """Give the options, and what there is beside them: Keystone's charm's word, and a resource that is attached."""
        config = load(self, keystone_charm.related(self.model, authenticator.in_force(self.places).keystone_url))
        path = None
        if config.takes_resource:
            try:
                path = self.model.resources.fetch(RESOURCE)
            except ops.ModelError as error:
                # Juju's word for "not attached" is an error, too, and not one that can be told from others.
                behind = upstream.asked(self.places)
                if behind is not None and behind.record.url == upstream.FROM_RESOURCE:
                    raise Waiting(f"resource {RESOURCE}: the controller does not give it: {error}") from error
        # Charmhub wants a file for each resource: an empty one stands for none.
        return config.with_resource(path if path is not None and path.stat().st_size else None)

    def _announce(self, message: str) -> None:
        logger.info(message)
        self.unit.status = ops.MaintenanceStatus(message)

    def _bring_into_force(self) -> ops.StatusBase:
        """Bring the machine to what the options say. What can be refused is looked at before any change."""
        owner.check(self.places, self.unit.name)
        config = self._config()
        policy = authenticator.validate_policy(self.places, config) if config.policy.strip() else None
        for warning in actions.shortened(policy.warnings) if policy else ():
            logger.warning("policy: %s", warning)
        for warning in authenticator.validate_sync(self.places, config) if config.sync_config.strip() else ():
            logger.warning("sync-config: %s", warning)
        credentials = ""
        if config.sync_credentials:
            credentials = secret.read(self.model, "sync-credentials", config.sync_credentials)
            authenticator.validate_credentials(self.places, credentials)
        layout = None if config.api_server == "manual" else apiserver.detect(config.api_server, self.place)
        missing = flags.missing(layout, config)
        if layout is not None:
            logger.info("api-server=%s: %s, %s", config.api_server, layout.name, apiserver.evidence(layout))
            apiserver.check(layout, missing.authorization)
        wire = layout if missing.any else None
        authenticator.check_ports(self.places, config.listen)
        self._check_new_urls(config)
        if not authenticator.is_installed(self.places):
            self._announce("installing the authenticator")
        account = functools.partial(secret.granted, self.model, upstream.CREDENTIALS)
        program = upstream.ensure(self.places, config, account, self._announce) if config.own_program else None
        self._make_way(config, wire, missing)

        authenticator.install(self.places)
        owner.claim(self.places, self.unit.name)
        offer = certificates.offered(self.model, self.places, config.listen)
        tls = self._ensure_tls(config, offer)
        authenticator.write_inputs(self.places, config, policy.content if policy else None, credentials)
        behind = None
        if program is not None:
            behind = upstream.start(self.places, config, tls, program, with_policy=policy is not None)
        chained = wire.place.chain_file if wire and missing.authentication else None
        certified = chained is not None
        if layout is None and manual.prepare(self.places, self.place, config, tls):
            # The control plane's own webhook, which shows no certificate, may be who asks.
            chained = self.place.chain_file
        authenticator.write_settings(
            self.places,
            config,
            tls,
            chained=chained,
            certified=certified,
            flags=wire.place.wanted if wire else None,
            authorization=policy is not None,
            backends=self._backends(config, behind),
        )
        if wire is not None:
            apiserver.chain(wire)
        authenticator.start(self.places, config.listen, bypass=wire is not None)
        status = authenticator.wait_until_in_force(self.places, tls)
        authenticator.remove_unused_inputs(self.places, config)
        if layout is not None:
            files.remove(self.places.by_hand)
        if program is None:
            upstream.stop(self.places)
        else:
            upstream.settle(self.places, program)
        self.unit.set_workload_version(status.version)
        if wire is not None:
            self._wire(config, wire, tls, missing)
        found = manual.asked(self.place, config, tls) if layout is None else [layout.name]
        # Once more: now the API server may know what it did not before.
        self._ensure_tls(config, offer)
        authenticator.wait_until_in_force(self.places, tls)
        if layout is not None and not missing.authentication:
            found.append(manual.BEHIND)
        if layout is not None and config.authorization and not missing.authorization:
            manual.check_others(self.place, config, layout, tls)
        summary = told.summary(self.places, config, found, policy, status)
        return ops.ActiveStatus(", ".join([summary, *self._in_cluster(config, layout), *told.of_tls(offer, tls)]))

    def _in_cluster(self, config: CharmConfig, layout: apiserver.Layout | None) -> list[str]:
        """Have the authenticator's own user in the cluster be there, and say how what it does there goes.

        Users log in without it: what is wrong with it is told, and is no reason to block.
        """
        try:
            cluster_user.ensure(self.places, config, layout, self.unit.name, authenticator.group())
        except cluster_user.NotAvailable as error:
            logger.warning("no user in the cluster for the authenticator: %s", error)
            return [told.shown(error)] if config.in_cluster else []
        return told.of_cluster(authenticator.status()) if config.in_cluster else []

    def _check_new_urls(self, config: CharmConfig) -> None:
        """Have a newly set URL answer before it is put in force; one that is in force may be down for a while."""
        now = authenticator.in_force(self.places)
        if (config.keystone_url, config.keystone_ca) != (now.keystone_url, now.keystone_ca):
            reach.keystone(config.keystone_url, config.keystone_ca)
        for option, url, old, kind in (
            ("authn-server-url", config.authentication_service, now.authentication_url, "TokenReview"),
            ("authz-server-url", config.authorization_service, now.authorization_url, "SubjectAccessReview"),
        ):
            if url and (url, config.auth_server_ca) != (old, now.backend_ca):
                reach.service(option, url, config.auth_server_ca, kind)

    def _ensure_tls(self, config: CharmConfig, offer: certificates.Offer) -> webhook.Tls:
        """Have the certificates be as far as those who ask us know them."""
        group, asked_by = authenticator.group(), self._asked_by(config)
        return webhook.ensure_tls(self.places, config.listen, group, offer=offer, asked_by=asked_by)

    def _asked_by(self, config: CharmConfig) -> tuple[apiserver.Knows, ...] | None:
        """Tell what API servers that ask us know, set by us or by hand; None where nobody does."""
        wired = apiserver.wired(self.place)
        ours = apiserver.knows(wired) if wired is not None else None
        return ours or apiserver.byhand.knows(self.place, config.listen.url) or None

    def _make_way(self, config: CharmConfig, layout: apiserver.Layout | None, missing: flags.Missing) -> None:
        """Take our flags out where they would lead nowhere: another layout, a moved endpoint, lost certificates.

        Or to a "no": once the cluster's own webhook asks us, we do not ask it, and its tokens must not come here first.
        """
        wired = apiserver.wired(self.place)
        if wired is None:
            return
        now = authenticator.in_force(self.places)
        moved = now.listen != config.listen.address or (now.chained and not missing.authentication)
        lost = not webhook.goes_on(self.places, config.listen, apiserver.knows(wired) or ())
        if layout is None or wired.name != layout.name or moved or lost:
            apiserver.remove(wired, self._announce)

    def _backends(self, config: CharmConfig, behind: Backend | None) -> Backends:
        """Say who stands behind the endpoint: somebody else's service, the operator's own program, or nobody."""
        ca = self.places.backend_ca if config.auth_server_ca else None
        authentication, authorization = (
            Backend(url, ca) if url else behind for url in (config.authentication_service, config.authorization_service)
        )
        return Backends(authentication, authorization if config.authorization else None)

    def _wire(self, config: CharmConfig, layout: apiserver.Layout, tls: webhook.Tls, missing: flags.Missing) -> None:
        """Have the API server ask us, and make sure that it does."""
        kubeconfig = webhook.kubeconfig(self.places, tls, config.listen, with_client=True)
        desired = flags.desired(layout, config, kubeconfig, missing)

        def probe() -> None:
            authenticator.wait_until_ready()
            chained = authenticator.status().chained.state == "ready"
            webhook.probe(kubeconfig, layout.admin_kubeconfig, chained=chained)

        try:
            apiserver.apply(layout, desired, probe, self._announce)
        except apiserver.NotReady as error:
            why = webhook.in_the_way(kubeconfig, layout.admin_kubeconfig)
            raise apiserver.NotReady(f"{error}: {why}" if why else str(error)) from error
        state = apiserver.state(layout)
        # Bypassed, too: the authenticator is back, or we would not be here, and a timer of the wiring's notices.
        if state.kind in {apiserver.Kind.PENDING, apiserver.Kind.TRIAL, apiserver.Kind.BYPASSED}:
            raise Waiting(state.reason or "the API server has not been started with our flags yet")
        if state.kind is not apiserver.Kind.IN_FORCE:
            raise Blocked(state.reason or f"the API server runs without our flags ({state.kind.value})")

    def _take_away(self) -> ops.StatusBase:
        """Leave the machine as it was: first nothing may lead to us any more, then we go."""
        if owner.other(self.places, self.unit.name) is None:
            wired = apiserver.wired(self.place)
            if self.places.cluster_user.exists():
                cluster_user.remove(self.places, wired or self._found_layout())
            if wired is not None:
                apiserver.remove(wired, self._announce)
            again.uninstall(self.places)
            upstream.stop(self.places)
            authenticator.uninstall(self.places)
        relate = which_juju.current().integrate("kubernetes-control-plane", NAME)
        return ops.WaitingStatus(f"not related: {relate}")

    def _found_layout(self) -> apiserver.Layout | None:
        try:
            return apiserver.detect("auto", self.place)
        except apiserver.WiringError:
            return None


if __name__ == "__main__":  # pragma: nocover
    ops.main(KubernetesKeystoneCharm)
