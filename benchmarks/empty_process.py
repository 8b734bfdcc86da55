"""The least that a TLS server in Python is: one answer a connection. Arguments: port, certificate, key."""

import asyncio
import ssl
import sys


async def answer(reader, writer):
    """Answer."""
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def main():
    """Serve until the end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    async with await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]), ssl=context) as server:
        await server.serve_forever()


asyncio.run(main())
