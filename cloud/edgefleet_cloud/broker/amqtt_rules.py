"""amqtt with the rules that mosquitto has by configuration: who is who, and who may what.

What amqtt 0.12.1 lets through and is closed here: a client certificate is optional; a client id is
whatever a client says; a will is not checked; whoever connects is sent every retained message that
anybody subscribes to; a clean session leaves the connection that it replaces alive.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, NamedTuple

from amqtt.broker import Broker, RetainedApplicationMessage
from amqtt.contexts import Action
from amqtt.errors import MQTTError
from amqtt.mqtt.connack import NOT_AUTHORIZED, ConnackPacket
from amqtt.mqtt.constants import QOS_1
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import OutgoingApplicationMessage, Session

from edgefleet_cloud.broker.acl import EMBEDDED_MANAGERS, Acl, managers

END_S = 2.0


class TlsFiles(NamedTuple):
    """PEM files of a listener: its authorities, its certificate with key, the revocation lists."""

    ca: str
    server: str
    crl: str


class Handler(BrokerProtocolHandler):  # type: ignore[misc]  # amqtt ships no types
    """Knows a client by its certificate, and keeps what was sent and not acknowledged.

    amqtt drops the latter as soon as the connection ends, which breaks QoS 1: a fleet manager that
    dies between receiving and committing would lose the message.
    """

    acl: Acl | None = None  # None: everybody who reaches the port is believed

    @classmethod
    async def init_from_connect(
        cls, reader: Any, writer: Any, plugins_manager: Any, loop: Any = None
    ) -> tuple[BrokerProtocolHandler, Session]:
        """Read CONNECT; the name in the certificate is user and client id, whatever it says."""
        handler, session = await super().init_from_connect(reader, writer, plugins_manager, loop)
        if cls.acl is not None:
            name = common_name(session.ssl_object)
            forged = session.will_flag and not cls.acl.may_write(name, session.will_topic)
            if not name or forged:
                await ConnackPacket.build(0, NOT_AUTHORIZED).to_stream(writer)
                await writer.close()
                raise MQTTError(f"{name!r} may not connect so")
            session.client_id = session.username = name
        return handler, session

    async def _handle_qos1_message_flow(self, app_message: Any) -> None:
        session = self.session
        try:
            await super()._handle_qos1_message_flow(app_message)
        finally:
            unanswered = (
                isinstance(app_message, OutgoingApplicationMessage)
                and not app_message.puback_packet
                and session is not None
                and not session.clean_session
            )
            if unanswered:
                session.retained_messages.put_nowait(
                    RetainedApplicationMessage(None, app_message.topic, app_message.data, QOS_1)
                )


class Present(BaseAuthPlugin):  # type: ignore[misc]  # amqtt ships no types
    """Lets everybody in whom the listener let in, as amqtt's own plugin does, but keeps sessions.

    amqtt forgets the session of a client that it marks anonymous as soon as the client is gone,
    and what was queued for it.
    """

    async def authenticate(self, *, session: Session) -> bool:
        """Accept: TLS has asked for a certificate, or only this machine reaches the port."""
        del session
        return True


class Topics(BaseTopicPlugin):  # type: ignore[misc]  # amqtt ships no types
    """Asks the access rules about every publish, subscription and delivery."""

    async def topic_filtering(
        self,
        *,
        session: Session | None = None,
        topic: str | None = None,
        action: Action | None = None,
    ) -> bool:
        """Return whether the client may."""
        if Handler.acl is None:
            return True
        if session is None or topic is None:
            return False
        if action == Action.PUBLISH:
            return Handler.acl.may_write(session.client_id, topic)
        return Handler.acl.may_read(session.client_id, topic)


class RuledBroker(Broker):  # type: ignore[misc]  # amqtt ships no types
    """amqtt's broker behind our own TLS, with take-overs that end the old connection whole.

    Args:
        configuration: amqtt's.
        tls: Where the listener's files lie; None: no TLS, and no rules.
    """

    def __init__(self, configuration: dict[str, Any], tls: TlsFiles | None) -> None:
        super().__init__(configuration)
        self._files = tls
        self._context = context(tls) if tls else None
        Handler.acl = Acl(managers(EMBEDDED_MANAGERS)) if tls else None

    def reload(self) -> None:
        """Read certificate, authorities and revocation lists again, for connections to come."""
        if self._files and self._context:
            _load(self._context, self._files)

    async def _create_server_instance(
        self, listener_name: str, listener_type: Any, address: Any, port: int, ssl_context: Any
    ) -> Any:
        del ssl_context  # amqtt's own takes clients without a certificate
        return await super()._create_server_instance(
            listener_name, listener_type, address, port, self._context
        )

    async def _delete_session(self, client_id: str) -> None:
        await self._end_connection(client_id)
        await super()._delete_session(client_id)

    async def _handle_client_session(
        self, reader: Any, writer: Any, client_session: Session, *rest: Any
    ) -> None:
        name = client_session.client_id
        await self._end_connection(name)
        await super()._handle_client_session(reader, writer, client_session, *rest)
        session, _handler = self._sessions.get(name, (None, None))
        if session is client_session and session.clean_session:
            await self._cleanup_session(name)  # amqtt leaves it a second for somebody to find

    async def _end_connection(self, client_id: str) -> None:
        """End what is connected under a name, and wait until its will is published."""
        session, handler = self._sessions.get(client_id, (None, None))
        if session is None or not session.transitions.is_connected():
            return
        if handler.writer is not None:
            # A polite close waits for an answer that a device thrown out need not give.
            handler.writer._writer.transport.abort()  # noqa: SLF001 - amqtt offers no abort
        await handler.handle_connection_closed()
        deadline = asyncio.get_running_loop().time() + END_S
        while session.transitions.is_connected():
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.005)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Send what is retained, but of a client's own subscriptions only."""
        subscribers = self._subscriptions.get(subscription[0], ())
        if any(known.client_id == session.client_id for known, _qos in subscribers):
            await super()._publish_retained_messages_for_subscription(subscription, session)


def common_name(connection: ssl.SSLObject | None) -> str:
    """Return the one common name in the other side's certificate, or ''."""
    shown = connection.getpeercert() if connection else None
    subject: Any = (shown or {}).get("subject", ())
    names = [str(value) for part in subject for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else ""


def context(files: TlsFiles) -> ssl.SSLContext:
    """Return a server's context that demands a certificate which is not revoked.

    TLS 1.3 without tickets: whoever resumes an older connection is not asked for its certificate
    again, and would outlive its revocation.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.num_tickets = 0
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    _load(made, files)
    return made


def _load(made: ssl.SSLContext, files: TlsFiles) -> None:
    made.load_cert_chain(files.server)
    made.load_verify_locations(files.ca)
    made.load_verify_locations(files.crl)  # of several lists of one authority the newest counts
