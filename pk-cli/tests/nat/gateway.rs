//! A router that answers PCP, NAT-PMP and UPnP-IGD as a test says, in a network namespace.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// How the router answers the requests of one protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manner {
    Grant,
    Refuse,
    Silent,
    /// In PCP: as a router that has only NAT-PMP.
    OtherVersion,
    /// These bytes, of UPnP-IGD as the description; without bytes a description of 3 MB.
    Garbage(Vec<u8>),
    /// From another address of the same network.
    Elsewhere,
}

/// Behavior of the router, which a test can change while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) pcp: Manner,
    pub(crate) nat_pmp: Manner,
    pub(crate) igd: Manner,
    pub(crate) external: Ipv4Addr,
    /// Granted lifetime in seconds.
    pub(crate) lifetime: u32,
    /// When the router has started.
    pub(crate) started: Instant,
}

impl Plan {
    /// A router that is silent in every protocol.
    pub(crate) fn silent() -> Self {
        Self {
            pcp: Manner::Silent,
            nat_pmp: Manner::Silent,
            igd: Manner::Silent,
            external: Ipv4Addr::new(20, 1, 2, 3),
            lifetime: 8,
            // Long before, so that a restart shows.
            started: Instant::now().checked_sub(Duration::from_secs(100)).unwrap(),
        }
    }
}

/// A running router.
#[derive(Debug)]
pub(crate) struct Gateway {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    /// Requests, one line each.
    seen: Mutex<Vec<String>>,
    ended: AtomicBool,
    address: Ipv4Addr,
    elsewhere: Ipv4Addr,
}

const SSDP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const HTTP_PORT: u16 = 5000;
const LOOK: Duration = Duration::from_millis(20);

impl Gateway {
    /// Starts a router in a namespace, which has both addresses.
    pub(crate) fn start(
        namespace: &str,
        address: Ipv4Addr,
        elsewhere: Ipv4Addr,
        plan: Plan,
    ) -> Self {
        let shared = Arc::new(Shared {
            plan: Mutex::new(plan),
            seen: Mutex::new(Vec::new()),
            ended: AtomicBool::new(false),
            address,
            elsewhere,
        });
        let mut threads = Vec::new();
        for serve in [serve_udp, serve_ssdp, serve_http] {
            let (shared, namespace) = (Arc::clone(&shared), namespace.to_owned());
            let (ready, wait) = std::sync::mpsc::channel();
            threads.push(thread::spawn(move || {
                let file = File::open(format!("/run/netns/{namespace}")).unwrap();
                // Of this thread only.
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                serve(&shared, &|| ready.send(()).unwrap());
            }));
            wait.recv().unwrap();
        }
        Self { shared, threads }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.shared.plan.lock().unwrap());
    }

    /// Returns the requests so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().clone()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // The test has failed already if one did.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn plan(&self) -> Plan {
        self.plan.lock().unwrap().clone()
    }

    fn saw(&self, request: String) {
        self.seen.lock().unwrap().push(request);
    }

    fn runs(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }
}

fn bind(address: Ipv4Addr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, port)).unwrap();
    socket.set_read_timeout(Some(LOOK)).unwrap();
    socket
}

// -- PCP and NAT-PMP

fn serve_udp(shared: &Shared, ready: &dyn Fn()) {
    let socket = bind(shared.address, 5351);
    let elsewhere = bind(shared.elsewhere, 5351);
    ready();
    let mut buffer = [0; 2000];
    while shared.runs() {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let (request, plan) = (&buffer[..length], shared.plan());
        let manner = if request[0] == 2 { &plan.pcp } else { &plan.nat_pmp };
        let epoch = u32::try_from(plan.started.elapsed().as_secs()).unwrap();
        let refused = u8::from(*manner == Manner::Refuse) * 2;
        let answer = match request[0] {
            2 => pcp(shared, request, &plan, epoch, refused),
            _ => nat_pmp(shared, request, &plan, epoch, refused),
        };
        let answer = match manner {
            Manner::Silent => continue,
            Manner::OtherVersion => vec![0, 0x81, 0, 1, 0, 0, 0, 0],
            Manner::Garbage(bytes) => bytes.clone(),
            Manner::Grant | Manner::Refuse | Manner::Elsewhere => answer,
        };
        let from_where = if *manner == Manner::Elsewhere { &elsewhere } else { &socket };
        from_where.send_to(&answer, from).unwrap();
    }
}

fn pcp(shared: &Shared, request: &[u8], plan: &Plan, epoch: u32, refused: u8) -> Vec<u8> {
    assert_eq!((request.len(), request[1], request[36]), (60, 1, 17), "a MAP for UDP");
    let asked = u32::from_be_bytes(request[4..8].try_into().unwrap());
    let internal = u16::from_be_bytes(request[40..42].try_into().unwrap());
    shared.saw(format!("pcp map {internal} for {asked}"));
    let granted = if asked == 0 { 0 } else { plan.lifetime };
    let mut answer = vec![2, 0x81, 0, refused];
    answer.extend(granted.to_be_bytes());
    answer.extend(epoch.to_be_bytes());
    answer.extend([0; 12]);
    answer.extend(&request[24..42]);
    answer.extend(internal.to_be_bytes());
    answer.extend(plan.external.to_ipv6_mapped().octets());
    answer
}

fn nat_pmp(shared: &Shared, request: &[u8], plan: &Plan, epoch: u32, refused: u8) -> Vec<u8> {
    let mut answer = vec![0, 0x80 | request[1], 0, refused];
    answer.extend(epoch.to_be_bytes());
    if request[1] == 0 {
        shared.saw("natpmp address".to_owned());
        answer.extend(plan.external.octets());
        return answer;
    }
    assert_eq!((request.len(), request[1]), (12, 1), "a mapping for UDP");
    let internal = u16::from_be_bytes(request[4..6].try_into().unwrap());
    let asked = u32::from_be_bytes(request[8..12].try_into().unwrap());
    shared.saw(format!("natpmp map {internal} for {asked}"));
    let (port, granted) = if asked == 0 { (0, 0) } else { (internal, plan.lifetime) };
    answer.extend(internal.to_be_bytes());
    answer.extend(port.to_be_bytes());
    answer.extend(granted.to_be_bytes());
    answer
}

// -- UPnP-IGD

fn serve_ssdp(shared: &Shared, ready: &dyn Fn()) {
    let socket = bind(Ipv4Addr::UNSPECIFIED, 1900);
    socket.join_multicast_v4(&SSDP, &shared.address).unwrap();
    let own = bind(shared.address, 0);
    let elsewhere = bind(shared.elsewhere, 0);
    ready();
    let mut buffer = [0; 2000];
    while shared.runs() {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if !request.starts_with("M-SEARCH") {
            continue;
        }
        shared.saw("igd search".to_owned());
        let plan = shared.plan();
        let (socket, host) = match plan.igd {
            Manner::Silent => continue,
            Manner::Elsewhere => (&elsewhere, shared.elsewhere),
            _ => (&own, shared.address),
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
             USN: uuid:1::urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nEXT:\r\nSERVER: test\r\n\
             LOCATION: http://{host}:{HTTP_PORT}/desc.xml\r\n\r\n"
        );
        socket.send_to(answer.as_bytes(), from).unwrap();
    }
}

fn serve_http(shared: &Shared, ready: &dyn Fn()) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, HTTP_PORT)).unwrap();
    listener.set_nonblocking(true).unwrap();
    ready();
    while shared.runs() {
        match listener.accept() {
            Ok((stream, from)) => answer_http(shared, stream, from),
            Err(_) => thread::sleep(LOOK),
        }
    }
}

fn answer_http(shared: &Shared, mut stream: TcpStream, _: SocketAddr) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let Some(request) = read_request(&mut stream) else { return };
    let plan = shared.plan();
    if plan.igd == Manner::Silent {
        // Until the caller gives up, or the test ends.
        while shared.runs() && stream.peek(&mut [0]).is_ok_and(|length| length > 0) {
            thread::sleep(LOOK);
        }
        return;
    }
    let (status, body) = if request.starts_with("GET /desc.xml") {
        (200, description(&plan))
    } else if request.starts_with("GET /scpd.xml") {
        (200, SCPD.to_owned())
    } else {
        soap(shared, &request, &plan)
    };
    let head = format!(
        "HTTP/1.1 {status} Answer\r\nContent-Type: text/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // Fails if the caller has read enough.
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())));
}

/// Reads a request with its body.
fn read_request(stream: &mut TcpStream) -> Option<String> {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return None,
            Ok(length) => bytes.extend(&chunk[..length]),
        }
    }
}

const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

fn description(plan: &Plan) -> String {
    let padding = match &plan.igd {
        Manner::Garbage(bytes) if bytes.is_empty() => "<a>x</a>".repeat(400_000),
        Manner::Garbage(bytes) => return String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    };
    format!(
        "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">{padding}<device>\
         <deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><deviceList><device>\
         <deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><deviceList><device>\
         <deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><serviceList><service>\
         <serviceType>{SERVICE}</serviceType><controlURL>/ctl</controlURL><SCPDURL>/scpd.xml</SCPDURL>\
         </service></serviceList></device></deviceList></device></deviceList></device></root>"
    )
}

const SCPD: &str = "<?xml version=\"1.0\"?><scpd xmlns=\"urn:schemas-upnp-org:service-1-0\"><actionList>\
    <action><name>AddPortMapping</name><argumentList>\
    <argument><name>NewRemoteHost</name><direction>in</direction></argument>\
    <argument><name>NewExternalPort</name><direction>in</direction></argument>\
    <argument><name>NewProtocol</name><direction>in</direction></argument>\
    <argument><name>NewInternalPort</name><direction>in</direction></argument>\
    <argument><name>NewInternalClient</name><direction>in</direction></argument>\
    <argument><name>NewEnabled</name><direction>in</direction></argument>\
    <argument><name>NewPortMappingDescription</name><direction>in</direction></argument>\
    <argument><name>NewLeaseDuration</name><direction>in</direction></argument>\
    </argumentList></action>\
    <action><name>DeletePortMapping</name><argumentList>\
    <argument><name>NewRemoteHost</name><direction>in</direction></argument>\
    <argument><name>NewExternalPort</name><direction>in</direction></argument>\
    <argument><name>NewProtocol</name><direction>in</direction></argument>\
    </argumentList></action>\
    <action><name>GetExternalIPAddress</name><argumentList>\
    <argument><name>NewExternalIPAddress</name><direction>out</direction></argument>\
    </argumentList></action></actionList></scpd>";

fn soap(shared: &Shared, request: &str, plan: &Plan) -> (u16, String) {
    let field = |name: &str| {
        let rest = request.split_once(&format!("<{name}>"))?.1;
        Some(rest.split_once("</")?.0.to_owned())
    };
    let port = field("NewExternalPort").unwrap_or_default();
    let (action, content) = if request.contains(":AddPortMapping ") {
        let seconds = field("NewLeaseDuration").unwrap_or_default();
        shared.saw(format!("igd add {port} for {seconds}"));
        ("AddPortMapping", String::new())
    } else if request.contains(":DeletePortMapping ") {
        shared.saw(format!("igd delete {port}"));
        ("DeletePortMapping", String::new())
    } else {
        assert!(request.contains(":GetExternalIPAddress "), "{request}");
        let ip = plan.external;
        ("GetExternalIPAddress", format!("<NewExternalIPAddress>{ip}</NewExternalIPAddress>"))
    };
    let body = match plan.igd {
        Manner::Refuse => {
            "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>\
             <UPnPError xmlns=\"urn:schemas-upnp-org:control-1-0\"><errorCode>606</errorCode>\
             <errorDescription>no</errorDescription></UPnPError></detail></s:Fault>"
                .to_owned()
        }
        _ => format!("<u:{action}Response xmlns:u=\"{SERVICE}\">{content}</u:{action}Response>"),
    };
    let envelope = format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>{body}</s:Body></s:Envelope>"
    );
    (if plan.igd == Manner::Refuse { 500 } else { 200 }, envelope)
}
