'use strict';
// One node of Polykey 1.15.1: the node layer of the published package and nothing around it (no agent, no seeds; mDNS
// with `manager.mdnsOptions`), told what to do by lines on stdin.
//
//   node polykey.js '{"dir": DIR, "host": "127.0.0.1", "port": 0, "seed": 64 hex digits, "allowAll": false, ...}'
//
// A line in:   {"id": 1, "do": "ping", "nodeId": "v..."}
// A line out:  {"id": 1, "ok": ...} or {"id": 1, "error": {"name": ..., "message": ..., "cause": ...}}
//              {"event": "ready" | "connection" | "fault", ...}
// Commands run side by side; their answers come as they are ready. The end of stdin ends the node, so that it never
// outlives who started it.

const fs = require('node:fs');
const readline = require('node:readline');

const { default: Logger, LogLevel, StreamHandler } = require('@matrixai/logger');
const { DB } = require('@matrixai/db');
const { DuplexHandler } = require('@matrixai/rpc');
const polykey = (path) => require('polykey/dist/' + path);
const { default: ACL } = polykey('acl/ACL');
const { default: CertManager } = polykey('keys/CertManager');
const { default: GestaltGraph } = polykey('gestalts/GestaltGraph');
const { default: KeyRing } = polykey('keys/KeyRing');
const { default: NodeConnectionManager } = polykey('nodes/NodeConnectionManager');
const { default: NodeGraph } = polykey('nodes/NodeGraph');
const { default: NodeManager } = polykey('nodes/NodeManager');
const { default: Sigchain } = polykey('sigchain/Sigchain');
const { default: TaskManager } = polykey('tasks/TaskManager');
const { default: Token } = polykey('tokens/Token');
const { default: serverManifest } = polykey('nodes/agent/handlers');
const claims = polykey('claims/utils');
const events = polykey('nodes/events');
const keys = polykey('keys/utils');
const nodes = polykey('nodes/utils');

const PASSWORD = 'interop';
const settings = JSON.parse(process.argv[2]);

function say(line) {
  const plain = (_, value) => (typeof value === 'bigint' ? value.toString() : value);
  process.stdout.write(JSON.stringify(line, plain) + '\n');
}

function told(error, depth = 0) {
  if (!(error instanceof Error) && typeof error?.type === 'string') {
    // What a peer threw and this node has no class for comes as it was sent.
    return { name: error.type, message: error.data?.message, data: error.data };
  }
  const { constructor, message, cause, data } = error ?? {};
  return {
    name: constructor?.name ?? typeof error,
    message: message ?? String(error),
    data: data !== undefined && typeof data === 'object' ? JSON.parse(JSON.stringify(data)) : undefined,
    cause: cause != null && depth < 8 ? told(cause, depth + 1) : undefined,
    errors: error instanceof AggregateError && depth < 8 ? error.errors.map((one) => told(one, depth + 1)) : undefined,
  };
}

// The reference's own database may find that two transactions of it are in conflict, and leaves it to its caller to
// try again; where that is a task of the reference itself, nobody does.
function conflict(error) {
  for (let e = error, depth = 0; e != null && depth < 8; e = e.cause, depth++) {
    if (e.constructor?.name === 'ErrorDBTransactionConflict') return true;
  }
  return false;
}

// A conflict in the background is no fault that a peer has caused: it goes to the log.
for (const kind of ['uncaughtException', 'unhandledRejection']) {
  process.on(kind, (error) => {
    if (conflict(error)) console.error(`${kind}, not tried again: ${error.stack}`);
    else say({ event: 'fault', kind, error: told(error), stack: String(error?.stack) });
  });
}

const encode = (id) => nodes.encodeNodeId(id);

function decode(text) {
  const id = nodes.decodeNodeId(text);
  if (id == null) throw new Error(`${text} is no node id`);
  return id;
}

async function all(stream) {
  const list = [];
  for await (const item of await stream) list.push(item);
  return list;
}

async function patiently(work) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (attempt === 20 || !conflict(error)) throw error;
      await new Promise((go) => setTimeout(go, 5 + Math.random() * 20 * attempt));
    }
  }
}

// The method of later versions that authenticates a connection (docs/WIRE.md section 14), which this version lacks. Each
// step is a message that this node sends, or 'read': it waits for one of the caller and reports it.
class Authenticate extends DuplexHandler {
  handle = async function* (input) {
    for (const step of settings.authentication) {
      if (step !== 'read') {
        yield step;
        continue;
      }
      const { value } = await input.next();
      say({ event: 'authentication', message: value });
    }
  };
}

async function start() {
  const { dir, host, port, seed, allowAll, authentication, connections = {}, manager = {} } = settings;
  fs.mkdirSync(dir, { recursive: true });
  const handler = new StreamHandler(undefined, process.stderr);
  const logger = new Logger('polykey', LogLevel[settings.log ?? 'WARN'], [handler]);
  let privateKey;
  if (seed != null) {
    // Not from a pool: libsodium locks the memory of the key.
    privateKey = Buffer.allocUnsafeSlow(32);
    Buffer.from(seed, 'hex').copy(privateKey);
  }
  const keyRing = await KeyRing.createKeyRing({
    keysPath: `${dir}/keys`,
    password: PASSWORD,
    passwordOpsLimit: keys.passwordOpsLimits.min,
    passwordMemLimit: keys.passwordMemLimits.min,
    strictMemoryLock: false,
    logger,
    ...(privateKey == null ? {} : { privateKey }),
  });
  const db = await DB.createDB({ dbPath: `${dir}/db`, logger });
  const taskManager = await TaskManager.createTaskManager({ db, lazy: true, logger });
  const certManager = await CertManager.createCertManager({ db, keyRing, taskManager, logger });
  const sigchain = await Sigchain.createSigchain({ db, keyRing, logger });
  const acl = await ACL.createACL({ db, logger });
  const gestaltGraph = await GestaltGraph.createGestaltGraph({ db, acl, logger });
  const nodeGraph = await NodeGraph.createNodeGraph({ db, keyRing, logger });
  const tls = async () => ({
    keyPrivatePem: keys.privateKeyToPEM(keyRing.keyPair.privateKey),
    certChainPem: await certManager.getCertPEMsChainPEM(),
  });
  const ncm = new NodeConnectionManager({ keyRing, tlsConfig: await tls(), logger, ...connections });
  const nodeManager = new NodeManager({
    db, keyRing, sigchain, gestaltGraph, nodeGraph, taskManager, logger,
    nodeConnectionManager: ncm, mdnsOptions: undefined, ...manager,
  });
  const allow = (id) => patiently(async () => {
    await gestaltGraph.setNode({ nodeId: id });
    await gestaltGraph.setGestaltAction(['node', id], 'claim');
  });
  for (const [side, event] of [
    ['dialer', events.EventNodeConnectionManagerConnectionForward],
    ['acceptor', events.EventNodeConnectionManagerConnectionReverse],
  ]) {
    ncm.addEventListener(event.name, (e) => {
      const { remoteNodeId: id, remoteHost, remotePort } = e.detail;
      say({ event: 'connection', side, nodeId: encode(id), host: remoteHost, port: remotePort });
      if (allowAll) void allow(id);
    });
  }
  const notifications = [];
  await ncm.start({
    host,
    port,
    agentService: {
      ...serverManifest({
        db, sigchain, nodeGraph, acl, nodeManager, keyRing, logger,
        nodeConnectionManager: ncm,
        // What lies above the node layer, as little of it as is needed to be called.
        notificationsManager: { receiveNotification: async (_, notification) => void notifications.push(notification) },
        vaultManager: { handleScanVaults: async function* () {} },
      }),
      ...(authentication == null ? {} : { nodesAuthenticateConnection: new Authenticate({}) }),
    },
  });
  await nodeManager.start();
  await taskManager.startProcessing();

  const with_ = (nodeId, work) => ncm.withConnF(decode(nodeId), (connection) => work(connection.rpcClient));
  const signed = ([id, claim]) => ({
    claimIdEncoded: claims.encodeClaimId(id),
    payload: claim.payload,
    signedTokenEncoded: claims.generateSignedClaim(claim),
  });

  const commands = {
    // -- connections
    connect: async ({ nodeId, host, port }) => {
      const connection = await ncm.createConnection([decode(nodeId)], host, port);
      return { nodeId: encode(connection.nodeId), connectionId: connection.connectionId };
    },
    disconnect: async ({ nodeId }) => void (await ncm.destroyConnection(decode(nodeId), false)),
    connections: async () => ncm.listConnections().map(({ nodeId, ...rest }) => ({ nodeId: encode(nodeId), ...rest })),
    // Has `relay` signal `nodeId`, and dials it.
    signal: async ({ nodeId, relay }) => {
      const connection = await ncm.createConnectionPunch(decode(nodeId), decode(relay));
      return { nodeId: encode(connection.nodeId), host: connection.host, port: connection.port };
    },
    // -- nodes
    find: async ({ nodeId }) => (await nodeManager.findNode({ nodeId: decode(nodeId) })) ?? null,
    mdns: async ({ nodeId, timeout }) => nodeManager.queryMDNS(decode(nodeId), { timer: timeout }),
    findMdns: async ({ nodeId, timeout }) => nodeManager.findNodeByMDNS(decode(nodeId), { timer: timeout }),
    ping: async ({ nodeId }) => (await nodeManager.pingNode(decode(nodeId))) ?? null,
    pingAddress: async ({ nodeId, host, port }) => nodeManager.pingNodeAddress(decode(nodeId), host, port),
    sync: async ({ nodeId, host, port }) => 
      void (await nodeManager.syncNodeGraph([[decode(nodeId), [host, port]]], undefined, true)),
    setNode: async ({ nodeId, host, port }) => {
      const data = { mode: 'direct', connectedTime: Date.now(), scopes: ['global'] };
      await nodeManager.setNode(decode(nodeId), [host, port], data);
    },
    unsetNode: async ({ nodeId }) => nodeManager.unsetNode(decode(nodeId)),
    graph: async () => {
      const graph = {};
      for await (const [id, contact] of nodeGraph.getNodeContacts()) graph[encode(id)] = contact;
      return graph;
    },
    // -- calls, as this node makes them to `via`
    closest: ({ nodeId, via }) =>
      with_(via, (rpc) => all(rpc.methods.nodesClosestLocalNodesGet({ nodeIdEncoded: nodeId }))),
    active: ({ nodeId, via }) =>
      with_(via, (rpc) => all(rpc.methods.nodesClosestActiveConnectionsGet({ nodeIdEncoded: nodeId }))),
    unary: ({ via, method, params }) => with_(via, (rpc) => rpc.unaryCaller(method, params)),
    stream: ({ via, method, params }) => with_(via, (rpc) => all(rpc.serverStreamCaller(method, params))),
    // A call whose results are followed by bytes in both directions: what comes after the first one.
    raw: ({ via, method, params, send }) => with_(via, async (rpc) => {
      const { meta, readable, writable } = await rpc.rawStreamCaller(method, params);
      const writer = writable.getWriter();
      await writer.write(Buffer.from(send));
      await writer.close();
      const bytes = Buffer.concat(await all(readable));
      return { result: meta.result, bytes: bytes.toString() };
    }),
    // Authenticates the connection to `via` by these steps, as the handler above. Returns what was read.
    authenticate: ({ via, steps }) => with_(via, async (rpc) => {
      const { readable, writable } = await rpc.duplexStreamCaller('nodesAuthenticateConnection');
      const [reader, writer] = [readable.getReader(), writable.getWriter()];
      const read = [];
      for (const step of steps) {
        if (step === 'read') read.push((await reader.read()).value ?? null);
        else await writer.write(step);
      }
      await reader.cancel().catch(() => {});
      await writer.close().catch(() => {});
      return read;
    }),
    // As many calls as are wanted, a few at a time.
    repeat: async ({ nodeId, via, times, width }) => {
      let left = times;
      const failures = [];
      const work = async () => {
        while (left-- > 0) {
          const method = left % 2 === 0 ? 'nodesClosestLocalNodesGet' : 'nodesClosestActiveConnectionsGet';
          await with_(via, (rpc) => all(rpc.methods[method]({ nodeIdEncoded: nodeId })))
            .catch((error) => void failures.push(told(error)));
        }
      };
      await Promise.all(Array.from({ length: width }, work));
      return { failures };
    },
    // -- claims
    allow: async ({ nodeId }) => void (await allow(decode(nodeId))),
    claim: async ({ nodeId }) => {
      await nodeManager.claimNode(decode(nodeId));
      return signed(await sigchain.getLastSignedClaim());
    },
    chain: async ({ nodeId }) => {
      const chain = await nodeManager.requestChainData(decode(nodeId));
      return Object.values(chain).map((claim) => claim.payload);
    },
    claimsGet: ({ nodeId }) => with_(nodeId, (rpc) => all(rpc.methods.nodesClaimsGet({ claimIdEncoded: '' }))),
    // Reads the chain of a node and checks, by the reference's own functions, everything that it could check itself.
    verify: async ({ nodeId }) => {
      const faults = [];
      let previous;
      const served = await with_(nodeId, (rpc) => all(rpc.methods.nodesClaimsGet({ claimIdEncoded: '' })));
      for (const { claimIdEncoded, signedTokenEncoded } of served) {
        const claim = claims.parseSignedClaim(signedTokenEncoded);
        const { jti, seq, prevClaimId, prevDigest, iss, sub } = claim.payload;
        const token = Token.fromSigned(claim);
        const wrong = (what) => faults.push(`${claimIdEncoded}: ${what}`);
        if (jti !== claimIdEncoded) wrong('jti');
        if (seq !== (previous?.payload.seq ?? 0) + 1) wrong('seq');
        if (prevClaimId !== (previous?.payload.jti ?? null)) wrong('prevClaimId');
        if (previous == null) {
          if (prevDigest !== null) wrong('prevDigest');
        } else {
          const [digest, format] = claims.decodeSignedClaimDigest(prevDigest) ?? [];
          if (format == null || !claims.hashSignedClaim(previous, format).equals(digest)) wrong('prevDigest');
        }
        for (const id of [iss, sub]) {
          if (!token.verifyWithPublicKey(keys.publicKeyFromNodeId(decode(id)))) wrong(`no signature by ${id}`);
        }
        if (claim.signatures.length !== 2) wrong('signatures');
        previous = claim;
      }
      return { claims: served.length, faults };
    },
    sigchain: async () => (await all(sigchain.getSignedClaims())).map(signed),
    gestalt: async () => {
      const gestalt = await gestaltGraph.getGestaltByNode(keyRing.getNodeId());
      return Object.values(gestalt?.nodes ?? {}).map(({ nodeId }) => encode(nodeId));
    },
    // Asks `nodeId` to sign a claim about this network.
    networkSign: async ({ nodeId, typ, claim = {} }) => {
      const own = encode(keyRing.getNodeId());
      const now = Math.floor(Date.now() / 1000);
      const token = Token.fromPayload({
        typ, iss: own, sub: nodeId, jti: claims.encodeClaimId(claims.createClaimIdGenerator(keyRing.getNodeId())()),
        iat: now, nbf: now, seq: 1, prevClaimId: null, prevDigest: null, ...claim,
      });
      token.signWithPrivateKey(keyRing.keyPair);
      const signedTokenEncoded = token.toEncoded();
      const answer = await with_(nodeId, (rpc) => rpc.methods.nodesClaimNetworkSign({ signedTokenEncoded }));
      const back = Token.fromEncoded(answer.signedTokenEncoded);
      return {
        samePayload: answer.signedTokenEncoded.payload === signedTokenEncoded.payload,
        signatures: back.signatures.length,
        verified: back.verifyWithPublicKey(keys.publicKeyFromNodeId(decode(nodeId))),
      };
    },
    notifications: async () => notifications,
    // -- identity
    cert: async () => certManager.getCertPEMsChainPEM(),
    renew: async () => {
      const old = encode(keyRing.getNodeId());
      await certManager.renewCertWithNewKeyPair(PASSWORD);
      await patiently(() => nodeManager.resetBuckets());
      await sigchain.onKeyRingChange();
      ncm.updateTlsConfig(await tls());
      return { old, new: encode(keyRing.getNodeId()) };
    },
  };

  let stopping = false;
  const stop = async () => {
    if (stopping) return;
    stopping = true;
    setTimeout(() => process.exit(1), 5000).unref();
    const parts = [
      () => taskManager.stopProcessing(), () => taskManager.stopTasks(), () => nodeManager.stop(),
      () => ncm.stop({ force: true }), () => nodeGraph.stop(), () => gestaltGraph.stop(), () => acl.stop(),
      () => sigchain.stop(), () => certManager.stop(), () => taskManager.stop(), () => db.stop(), () => keyRing.stop(),
    ];
    for (const part of parts) await Promise.resolve(part()).catch(() => {});
    fs.rmSync(dir, { recursive: true, force: true });
    process.exit(0);
  };
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('line', async (line) => {
    const { id, do: name, ...args } = JSON.parse(line);
    try {
      if (commands[name] == null) throw new Error(`there is no command ${name}`);
      const work = () => commands[name](args);
      // A second attempt to renew would renew twice.
      say({ id, ok: (await (name === 'renew' ? work() : patiently(work))) ?? null });
    } catch (error) {
      say({ id, error: told(error) });
    }
  });
  lines.on('close', stop);
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  say({ event: 'ready', nodeId: encode(keyRing.getNodeId()), host: ncm.host, port: ncm.port });
}

start().catch((error) => {
  say({ event: 'failed', error: told(error) });
  process.stderr.write(String(error?.stack) + '\n');
  process.exit(1);
});
