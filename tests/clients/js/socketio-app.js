// An ordinary Socket.IO app: `node socketio-app.js PORT NAME`. It knows nothing of a proxy.
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { Server } from 'socket.io';

const [port, name] = process.argv.slice(2);

const http = createServer((request, response) => {
  const hash = createHash('sha256');
  let size = 0;
  request.on('data', (chunk) => { hash.update(chunk); size += chunk.length; });
  request.on('end', () => {
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify({
      server: name, method: request.method, url: request.url, size, sha256: hash.digest('hex'),
      forwardedFor: request.headers['x-forwarded-for'], host: request.headers.host,
    }));
  });
});

const io = new Server(http, { pingInterval: 2000, pingTimeout: 10_000 });
io.on('connection', (socket) => {
  socket.emit('hello', { server: name, transport: socket.conn.transport.name, forwardedFor: socket.handshake.headers['x-forwarded-for'] });
  socket.on('echo', (data, ack) => ack({ server: name, data }));
  socket.on('join', (room, ack) => { socket.join(room); ack(); });
  socket.on('say', (room, text) => io.to(room).emit('said', text));
});
http.listen(Number(port), '127.0.0.1');
