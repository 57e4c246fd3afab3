// llama.cpp as npm's node-llama-cpp has it built: one line of JSON asks, one answers.
import {createInterface} from "node:readline";
import {getLlama} from "node-llama-cpp";

const [file, length, written] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const prompt = JSON.parse(process.argv[5]);
const began = performance.now();
const llama = await getLlama({gpu: false, build: "never", maxThreads: 2, logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const context = await model.createContext({contextSize: length + 2 * written, threads: 2});
const sequence = context.getSequence();
await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(0, -1));
const loaded = (performance.now() - began) / 1000;

async function write() {
    const ids = [];
    for await (const id of sequence.evaluate(prompt.slice(-1), {temperature: 0, yieldEogToken: true})) {
        ids.push(id);
        if (ids.length === written) break;
    }
    await sequence.eraseContextTokenRanges([{start: length - 1, end: sequence.nextTokenIndex}]);
    return ids;
}

console.log(JSON.stringify({loaded, ids: await write()}));
for await (const _ of createInterface({input: process.stdin})) {
    const start = performance.now();
    await write();
    console.log(JSON.stringify({seconds: (performance.now() - start) / 1000}));
}
process.exit(0);
