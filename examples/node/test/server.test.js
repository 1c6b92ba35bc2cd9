// Calls of every kind to a real server, named in TWINSERVE_TARGET, whose only twin takes pictures.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, describe, it } from 'node:test';

import grpc from '@grpc/grpc-js';

import { connect, TwinserveError } from '../twinserve.js';
import { square } from './pictures.js';

const target = process.env.TWINSERVE_TARGET;
const small = { image: square(6) };
const large = { image: square(22) };

const options = { timeout: 100_000, skip: target ? false : 'TWINSERVE_TARGET names none' };

describe('a server', options, () => {
  const gallery = `node-${randomUUID()}`;
  let client;

  before(async () => {
    client = connect(target, { timeout: 20 });
    await client.gallery.createGallery({ gallery: { name: gallery } });
  });
  after(async () => {
    await client.gallery.deleteGallery({ name: gallery });
    client.close();
  });

  it('embeds, and tells of a bad item in its place', async () => {
    const { results } = await client.embedding.embed({
      inputs: [small, { image: Buffer.from('no picture') }, large],
    });
    assert.deepEqual(
      results.map(({ result }) => result),
      ['embedding', 'error', 'embedding'],
    );
    assert.ok(results[0].embedding.values.every(Number.isFinite));
    const error = new TwinserveError(results[1].error);
    assert.equal(error.reason, 'IMAGE_UNDECODABLE');
    assert.equal(error.field, 'inputs[1].image');
  });

  it('compares', async () => {
    const { results } = await client.embedding.compare({
      pairs: [
        { first: small, second: small },
        { first: small, second: large },
      ],
      rule: { threshold: 0 },
    });
    const [same, other] = results.map(({ comparison }) => comparison);
    assert.equal(same.score.distance, 0);
    assert.equal(same.decision.outcome, 'OUTCOME_MATCH');
    assert.ok(other.score.distance > 0);
    assert.equal(other.decision.outcome, 'OUTCOME_NO_MATCH');
  });

  it('enrols and searches', async () => {
    const { results } = await client.gallery.enroll({
      gallery,
      items: [
        { item: { id: 's', subject: 'small' }, input: small },
        { item: { id: 'l', subject: 'large' }, input: large },
      ],
    });
    assert.deepEqual(
      results.map(({ enrolled }) => [enrolled.id, enrolled.change]),
      [
        ['s', 'CHANGE_CREATED'],
        ['l', 'CHANGE_CREATED'],
      ],
    );
    const found = await client.gallery.search({ gallery, probes: [large], topK: 2 });
    assert.deepEqual(
      found.results[0].hits.hits.map(({ item }) => item.subject),
      ['large', 'small'],
    );
  });

  it('refuses with a reason', async () => {
    await assert.rejects(client.gallery.search({ gallery: 'nobody', probes: [small] }), (error) => {
      assert.ok(error instanceof TwinserveError);
      assert.equal(error.reason, 'GALLERY_NOT_FOUND');
      assert.equal(error.code, grpc.status.NOT_FOUND);
      return true;
    });
  });

  it('streams through a stub', async () => {
    const stream = client.embedding.stub.embedStream();
    for (const requestId of ['first', 'second']) {
      stream.write({ request: { inputs: [small], requestId } });
    }
    stream.end();
    const answered = [];
    for await (const { requestId, response } of stream) {
      answered.push([requestId, response.results.length]);
    }
    assert.deepEqual(answered, [
      ['first', 1],
      ['second', 1],
    ]);
  });
});
