// An ordinary app on the `ws` package: `node ws-app.js PORT`. It knows nothing of a proxy.
import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

const closes = [];
const http = createServer((request, response) => {
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify(closes));
});

const server = new WebSocketServer({
  noServer: true,
  maxPayload: 4 << 20,
  perMessageDeflate: { threshold: 1024 },
  handleProtocols: (offered) => (offered.has('echo.v2') ? 'echo.v2' : false),
});

http.on('upgrade', (request, socket, head) => {
  const { pathname } = new URL(request.url, 'http://app');
  if (pathname === '/members-only') {
    socket.end('HTTP/1.1 401 Unauthorized\r\nX-Reason: no ticket\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nno ticket');
    return;
  }
  server.handleUpgrade(request, socket, head, (ws) => server.emit('connection', ws, request));
});

server.on('connection', (ws, request) => {
  const { pathname, searchParams } = new URL(request.url, 'http://app');
  if (pathname === '/hello') ws.send(JSON.stringify({ url: request.url, headers: request.headers }));
  if (pathname === '/close') ws.close(Number(searchParams.get('code')), searchParams.get('reason'));
  if (pathname === '/vanish') ws.terminate();
  if (pathname === '/ping') ws.ping('are you there?');
  ws.on('pong', (data) => ws.send(`pong: ${data}`));
  ws.on('message', (data, binary) => ws.send(data, { binary }));
  ws.on('close', (code, reason) => closes.push({ url: request.url, code, reason: reason.toString() }));
  ws.on('error', () => {});
});
http.listen(Number(process.argv[2]), '127.0.0.1');
