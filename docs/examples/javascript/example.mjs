// node example.mjs [http://127.0.0.1:8000]

import { grad, quantize } from "./stequant.mjs";

const server = process.argv[2] ?? "http://127.0.0.1:8000";
const op = "clamp(min_value=0, max_value=1) | k_bit_quantize(k=4)";
const x = Float32Array.of(-0.5, 0.3, 0.7, 2);

console.log((await quantize(server, op, x)).data);
console.log((await grad(server, op, x, new Float32Array(4).fill(1))).data);
