// What the client does by itself, against a server that plays along: retries, deadlines, keys, TLS.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { promisify } from 'node:util';

import grpc from '@grpc/grpc-js';

import { connect, definition, TwinserveError } from '../twinserve.js';

const Embedding = definition['twinserve.v1.EmbeddingService'];
const ANSWER = { modelVersion: 'small@1', results: [] };

function packed(type, message) {
  return {
    type_url: `type.googleapis.com/${type}`,
    value: definition[type].serialize(message),
  };
}

/** A refusal with the details that twinserve sends. */
function refusal(code, reason, seconds) {
  const details = [packed('google.rpc.ErrorInfo', { reason, domain: 'twinserve' })];
  if (seconds !== undefined) {
    const retryDelay = { seconds: Math.floor(seconds), nanos: (seconds % 1) * 1e9 };
    details.push(packed('google.rpc.RetryInfo', { retryDelay }));
  }
  const status = { code, message: 'refused', details };
  const metadata = new grpc.Metadata();
  metadata.set('grpc-status-details-bin', definition['google.rpc.Status'].serialize(status));
  return { code, details: 'refused', metadata };
}

describe('the client', { timeout: 100_000 }, () => {
  let server;
  let client;
  let calls; // every Embed that came: its request, and its metadata
  let replies; // what to answer, the first first: a refusal, or null for an answer

  async function serve(credentials = grpc.ServerCredentials.createInsecure()) {
    server = new grpc.Server();
    server.addService(Embedding, {
      embed({ request, metadata }, answer) {
        calls.push({ request, metadata: metadata.getMap() });
        if (replies.length) answer(replies.shift(), ANSWER);
      },
    });
    return promisify(server.bindAsync.bind(server))('127.0.0.1:0', credentials);
  }

  beforeEach(() => {
    calls = [];
    replies = [];
  });
  afterEach(() => {
    client?.close();
    server.forceShutdown();
  });

  it('comes again when the server said, with the same request', async () => {
    const { RESOURCE_EXHAUSTED } = grpc.status;
    client = connect(`127.0.0.1:${await serve()}`);
    replies = [refusal(RESOURCE_EXHAUSTED, 'QUEUE_FULL', 0.2), null];
    const start = Date.now();
    assert.equal((await client.embedding.embed({ inputs: [] })).modelVersion, 'small@1');
    assert.ok(Date.now() - start >= 190, 'it came before it was asked to');
    assert.equal(calls.length, 2);
    assert.match(calls[0].request.requestId, /^[0-9a-f-]{36}$/);
    assert.deepEqual(calls[1].request, calls[0].request);
  });

  it('does not come again where that would not help, or be too late', async () => {
    const { RESOURCE_EXHAUSTED, INVALID_ARGUMENT } = grpc.status;
    client = connect(`127.0.0.1:${await serve()}`, { timeout: 10 });
    for (const refused of [
      refusal(INVALID_ARGUMENT, 'EMPTY_INPUT', 0.01),
      refusal(RESOURCE_EXHAUSTED, 'LIMIT_EXCEEDED'),
      refusal(RESOURCE_EXHAUSTED, 'QUEUE_FULL', 11),
    ]) {
      calls = [];
      replies = [refused];
      await assert.rejects(client.embedding.embed({}), TwinserveError);
      assert.equal(calls.length, 1);
    }
  });

  it('comes again to a server that goes away for a while', async () => {
    client = connect(`127.0.0.1:${await serve()}`);
    replies = [{ code: grpc.status.UNAVAILABLE, details: 'stopping' }, null];
    assert.equal((await client.embedding.embed({})).modelVersion, 'small@1');
    assert.equal(calls.length, 2);
  });

  it('gives up at its deadline', async () => {
    client = connect(`127.0.0.1:${await serve()}`);
    await assert.rejects(client.embedding.embed({}, { timeout: 0.1 }), {
      name: 'TwinserveError',
      reason: 'DEADLINE_EXCEEDED',
    });
  });

  it('sends its key and its priority with every call', async () => {
    client = connect(`127.0.0.1:${await serve()}`, { apiKey: 'k1', priority: 'high' });
    replies = [null];
    await client.embedding.embed({ requestId: 'mine' });
    assert.equal(calls[0].metadata.authorization, 'Bearer k1');
    assert.equal(calls[0].metadata['twinserve-priority'], 'high');
    assert.equal(calls[0].request.requestId, 'mine');
  });

  it('speaks TLS, and trusts only whom it is told to', async (test) => {
    const folder = mkdtempSync(path.join(tmpdir(), 'tls-'));
    test.after(() => rmSync(folder, { recursive: true }));
    const [key, cert] = ['key.pem', 'cert.pem'].map((name) => path.join(folder, name));
    execFileSync(
      'openssl',
      ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
        '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-days', '1',
        '-keyout', key, '-out', cert],
      { stdio: 'ignore' },
    );
    const ca = readFileSync(cert);
    const credentials = grpc.ServerCredentials.createSsl(null, [
      { private_key: readFileSync(key), cert_chain: ca },
    ]);
    const target = `localhost:${await serve(credentials)}`;

    client = connect(target, { tls: true, timeout: 1 });
    await assert.rejects(client.embedding.embed({}), TwinserveError);
    assert.equal(calls.length, 0);
    client.close();

    replies = [null];
    client = connect(target, { tls: { ca } });
    assert.equal((await client.embedding.embed({})).modelVersion, 'small@1');
  });
});
