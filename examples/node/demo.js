// Embeds, compares, enrols and searches pictures of one's own:
//
//   node demo.js [--target 127.0.0.1:50051] [--model NAME] [--ca ca.pem]
//       [--cert client.pem --key client.key] first.png second.png …
//
// The first picture is the probe; the others are enrolled in a gallery that is deleted in the end,
// each as a subject named after its file. An API key is read from TWINSERVE_API_KEY.

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { parseArgs } from 'node:util';

import { connect, TwinserveError } from './twinserve.js';

const { values, positionals: files } = parseArgs({
  options: {
    target: { type: 'string', default: '127.0.0.1:50051' },
    model: { type: 'string', default: '' }, // the only one served
    ca: { type: 'string' },
    cert: { type: 'string' }, // one's own, where the server asks for it (mutual TLS)
    key: { type: 'string' },
  },
  allowPositionals: true,
});
if (files.length < 2) {
  console.error('give two pictures or more: node demo.js first.png second.png');
  process.exit(2);
}

const client = connect(values.target, {
  apiKey: process.env.TWINSERVE_API_KEY,
  tls: values.ca && {
    ca: readFileSync(values.ca),
    cert: values.cert && readFileSync(values.cert),
    key: values.key && readFileSync(values.key),
  },
  timeout: 10,
});
const { model } = values;
const gallery = `node-demo-${randomUUID()}`;
const inputs = files.map((file) => ({ image: readFileSync(file) }));
const [probe, second, ...others] = inputs;

try {
  const { results, spaceId } = await client.embedding.embed({ model, inputs });
  for (const [index, { embedding, error }] of results.entries()) {
    // One bad picture fails alone; the call itself is well.
    const said = error ? new TwinserveError(error).reason : `${embedding.values.length} values`;
    console.log(`embedded ${basename(files[index])}: ${said}`);
  }
  console.log(`space ${spaceId}`);

  const compared = await client.embedding.compare({
    model,
    pairs: [{ first: probe, second }],
    rule: { falseAcceptRate: 0.01 },
  });
  const [{ comparison, error }] = compared.results;
  if (error) throw new TwinserveError(error);
  console.log(`compared: ${comparison.decision.outcome} at ${comparison.score.distance.toFixed(4)}`);

  await client.gallery.createGallery({ gallery: { name: gallery, model } });
  try {
    const enrolled = await client.gallery.enroll({
      gallery,
      items: [second, ...others].map((input, index) => ({
        item: { subject: basename(files[index + 1]) },
        input,
      })),
    });
    const kept = enrolled.results.filter(({ result }) => result === 'enrolled');
    console.log(`enrolled ${kept.length} of ${files.length - 1}`);

    const found = await client.gallery.search({ gallery, probes: [probe], topK: 3 });
    for (const { item, score } of found.results[0].hits.hits) {
      console.log(`found ${item.subject} at ${score.distance.toFixed(4)}`);
    }
  } finally {
    await client.gallery.deleteGallery({ name: gallery });
  }
} catch (failure) {
  if (!(failure instanceof TwinserveError)) throw failure;
  console.error(`${failure.reason}: ${failure.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
