// A client of twinserve for Node, to copy and change: promises, a deadline on every call, retries
// that wait as long as the server asks, an API key, TLS, and errors with a reason to switch on.
//
// The stubs are made from the .proto files when this is loaded. Names are in camel case (topK),
// enums are strings, and `oneof`s say which field is set (result.result is 'hits' or 'error').

import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const ours = process.env.TWINSERVE_PROTOS ?? fileURLToPath(new URL('../../protos', import.meta.url));
const googleapis = path.dirname(
  createRequire(import.meta.url).resolve('google-proto-files/package.json'),
);

/** The contract, for whoever needs more of it than `connect` gives. */
export const definition = loader.loadSync(
  [
    'twinserve/v1/embedding_service.proto',
    'twinserve/v1/gallery_service.proto',
    'twinserve/v1/model_service.proto',
    'google/rpc/error_details.proto',
  ],
  {
    includeDirs: [ours, googleapis],
    defaults: true,
    enums: String,
    longs: Number,
    oneofs: true,
  },
);
const { v1 } = grpc.loadPackageDefinition(definition).twinserve;

/**
 * What the server refused, for a whole call or (made from its `error` field) for one item of it.
 *
 * Switch on `reason`, such as 'GALLERY_NOT_FOUND'; the text of a message may change.
 */
export class TwinserveError extends Error {
  /** @param status a google.rpc.Status: { code, message, details } */
  constructor({ code, message, details = [] }) {
    super(message);
    this.name = 'TwinserveError';
    const found = decoded(details);
    /** One of grpc.status, a number. */
    this.code = code;
    this.reason = found.ErrorInfo?.reason ?? grpc.status[code] ?? 'UNKNOWN';
    /** Facts for programs, such as the limit that was passed. */
    this.metadata = found.ErrorInfo?.metadata ?? {};
    /** Path of the field that was wrong, such as 'inputs[3].image'; '' where it was none. */
    this.field = found.BadRequest?.fieldViolations[0]?.field ?? '';
    const delay = found.RetryInfo?.retryDelay;
    /** Seconds after which a retry may succeed; undefined where the server told none. */
    this.retryAfter = delay && delay.seconds + delay.nanos / 1e9;
  }
}

/** The first detail of each type that we know, by the type's short name. */
function decoded(details) {
  const found = {};
  for (const { type_url: url, value } of details) {
    const type = url.slice(url.lastIndexOf('/') + 1);
    found[type.split('.').at(-1)] ??= definition[type]?.deserialize(value);
  }
  return found;
}

function errorOf(failure) {
  const [packed] = failure.metadata?.get('grpc-status-details-bin') ?? [];
  const status = packed && definition['google.rpc.Status'].deserialize(packed);
  return new TwinserveError(status ?? { code: failure.code, message: failure.details });
}

/** Milliseconds to wait before the next attempt; undefined where another would not help. */
function pauseAfter(error, attempt) {
  const asked = error.retryAfter && error.retryAfter * 1000;
  if (error.code === grpc.status.RESOURCE_EXHAUSTED) return asked;
  if (error.code !== grpc.status.UNAVAILABLE) return undefined;
  // Clients that lost the same server must not come back in step.
  return Math.max(asked ?? 0, Math.min(100 * 2 ** attempt, 2000) * (0.5 + Math.random() / 2));
}

/**
 * Connects to a server.
 *
 * @param {string} target host:port
 * @param {object} [options]
 * @param {string} [options.apiKey] sent as a bearer token with every call
 * @param {boolean | {ca?: Buffer, key?: Buffer, cert?: Buffer}} [options.tls] true takes the
 *     system's certificate authorities; `ca` is a PEM file of one's own, `key` and `cert` the
 *     client's side of mutual TLS
 * @param {'high' | 'normal' | 'low'} [options.priority] of every call
 * @param {number} [options.timeout] seconds that a call may take, its retries included
 * @returns {{embedding: object, gallery: object, model: object, close: () => void}} a function
 *     for each call of the three services, `await client.gallery.search({...})`, which rejects with
 *     a TwinserveError; a service's `stub` has the streams too
 */
export function connect(target, { apiKey, tls, priority, timeout = 30 } = {}) {
  const { ca, key, cert } = tls ?? {};
  const credentials = tls
    ? grpc.credentials.createSsl(ca, key, cert)
    : grpc.credentials.createInsecure();
  const metadata = new grpc.Metadata();
  // A key that was read from a file ends with its line.
  if (apiKey) metadata.set('authorization', `Bearer ${apiKey.trim()}`);
  if (priority) metadata.set('twinserve-priority', priority);

  function service(Stub) {
    // How large a message may be is the server's to say.
    const stub = new Stub(target, credentials, { 'grpc.max_receive_message_length': -1 });
    const calls = { stub };
    for (const [name, { requestStream, responseStream, originalName }] of Object.entries(
      Stub.service,
    )) {
      if (requestStream || responseStream) continue;
      calls[originalName] = (request, options) => call(stub, name, request, options);
    }
    return calls;
  }

  async function call(stub, name, request, options) {
    const deadline = Date.now() + 1000 * (options?.timeout ?? timeout);
    // A write that comes twice under one id is done once, so that a retry enrols nothing twice.
    // Requests that know no such field leave it out.
    const sent = { requestId: randomUUID(), ...request };
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await new Promise((resolve, reject) => {
          stub[name](sent, metadata, { deadline }, (failure, reply) =>
            failure ? reject(errorOf(failure)) : resolve(reply),
          );
        });
      } catch (error) {
        const pause = pauseAfter(error, attempt);
        // A pause past the deadline would only hide the reason behind DEADLINE_EXCEEDED.
        if (pause === undefined || Date.now() + pause >= deadline) throw error;
        await sleep(pause);
      }
    }
  }

  const services = {
    embedding: service(v1.EmbeddingService),
    gallery: service(v1.GalleryService),
    model: service(v1.ModelService),
  };
  return { ...services, close: () => Object.values(services).forEach(({ stub }) => stub.close()) };
}
