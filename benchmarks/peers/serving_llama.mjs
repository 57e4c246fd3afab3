// Worker: llama.cpp in npm's node-llama-cpp, two threads, one request; it talks as protocol.py says.
import {createInterface} from "node:readline";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const WRITTEN = 128;
const [folder] = process.argv.slice(2);
const found = createRequire(`${folder}/`).resolve("node-llama-cpp");
const {getLlama} = await import(pathToFileURL(found).href);
let run = null;

async function prepare({model, length, work}) {
    const llama = await getLlama({gpu: false, build: "never", maxThreads: 2, logLevel: "error"});
    const loaded = await llama.loadModel({modelPath: model});
    const context = await loaded.createContext({contextSize: length + 2 * WRITTEN, threads: 2});
    const sequence = context.getSequence();
    const tokens = Array.from({length}, (_, i) => 3 + (i * 7919) % 49000);
    const read = async () => {
        await sequence.clearHistory();
        await sequence.evaluateWithoutGeneratingNewTokens(tokens);
    };
    const write = async () => {
        let count = 0;
        for await (const _ of sequence.evaluate([5], {temperature: 0, yieldEogToken: true})) {
            if (++count === WRITTEN) break;
        }
        await sequence.eraseContextTokenRanges([{start: length, end: sequence.nextTokenIndex}]);
    };
    await read();
    if (work === "decode") await write();
    run = work === "decode" ? write : read;
    return {sample: []};
}

let rest = performance.now(), busy = process.cpuUsage();
for await (const line of createInterface({input: process.stdin})) {
    const {do: asked, ...request} = JSON.parse(line);
    const used = process.cpuUsage(busy);
    const idle = {
        idle: (performance.now() - rest) / 1e3,
        idle_busy: (used.user + used.system) / 1e6,
    };
    let answer;
    if (asked === "prepare") {
        answer = await prepare(request);
    } else {
        const start = performance.now();
        await run();
        answer = {seconds: (performance.now() - start) / 1e3};
    }
    const peak = process.resourceUsage().maxRSS * 1024;
    process.stdout.write(JSON.stringify({...answer, ...idle, peak}) + "\n");
    [rest, busy] = [performance.now(), process.cpuUsage()];
}
process.exit(0);
