// An ordinary app on Node's own HTTP server: `node http-app.js PORT`. It knows nothing of a proxy.
import { createHash, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';

const PAGE = randomBytes(1 << 20);
const ETAG = `"${createHash('sha256').update(PAGE).digest('hex').slice(0, 16)}"`;

const routes = {
  '/echo': async (request, response) => {
    const hash = createHash('sha256');
    let size = 0;
    for await (const chunk of request) { hash.update(chunk); size += chunk.length; }
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify({
      size, sha256: hash.digest('hex'), method: request.method, headers: request.headers, trailers: request.trailers, port: request.socket.remotePort,
    }));
  },
  '/page': (request, response) => {
    response.setHeader('ETag', ETAG);
    if (request.headers['if-none-match'] === ETAG) { response.writeHead(304); response.end(); return; }
    response.setHeader('Content-Length', PAGE.length);
    response.end(request.method === 'HEAD' ? undefined : PAGE);
  },
  // 64 MiB in chunks, at the pace that is read.
  '/download': async (request, response) => {
    for (let n = 0; n < 64; n += 1) {
      if (!response.write(PAGE)) await new Promise((resolve) => response.once('drain', resolve));
    }
    response.end();
  },
  '/trailers': (request, response) => {
    response.writeHead(200, { Trailer: 'X-Sum' });
    response.write('body');
    response.addTrailers({ 'X-Sum': '1' });
    response.end();
  },
  '/early': (request, response) => {
    response.writeEarlyHints({ link: '</style.css>; rel=preload; as=style' });
    response.end('after the hints');
  },
  '/cookies': (request, response) => {
    response.setHeader('Set-Cookie', ['a=1; HttpOnly', 'b=2; Path=/']);
    response.end();
  },
  '/nothing': (request, response) => { response.writeHead(204); response.end(); },
  '/moved': (request, response) => { response.writeHead(302, { Location: '/page' }); response.end(); },
  '/failed': (request, response) => { response.writeHead(500, { 'X-Own': 'kept' }); response.end('the app\'s own words'); },
};

const http = createServer((request, response) => {
  const route = routes[new URL(request.url, 'http://app').pathname];
  if (route) { route(request, response); return; }
  response.writeHead(404);
  response.end('no such page');
});
// Who says Expect: 100-continue is told before he sends.
http.on('checkContinue', (request, response) => {
  if (request.headers['x-own'] === 'too large') { response.writeHead(413, { Connection: 'close' }); response.end(); return; }
  response.writeContinue();
  http.emit('request', request, response);
});
// Soon enough that a test meets it.
http.keepAliveTimeout = 1000;
http.listen(Number(process.argv[2]), '127.0.0.1');
