//! Streams of applications between real nodes.

use std::time::Duration;

use bytes::Bytes;
use pk_proto::{Reply, Request, RequestOptions};
use pk_sim::{App, Cluster};

/// The acceptor's application sends first: its bytes directly follow the answer that makes the
/// opener detach the stream.
#[test]
fn application_of_the_acceptor_can_send_first() {
    for seed in 0..10 {
        let mut cluster = Cluster::quiet().nodes(2).seed(seed).start();
        cluster.call(1, |node, now| node.accept_protocol("greet".to_owned(), now)).unwrap();
        let greeting = Bytes::from_static(b"hello, who are you?");
        let app = App::Script { send: greeting.clone(), fin: true };
        cluster.host_mut(1).apps.insert("greet".to_owned(), app);
        cluster.connect(0, 1).unwrap();
        let target = cluster.id(1);
        let request = Request::OpenStream {
            target,
            protocol: "greet".to_owned(),
            options: RequestOptions::default(),
        };
        let reply = cluster.ask(0, request);
        cluster.drive(Duration::from_secs(1));
        let stream = cluster.app_streams(0).next().unwrap();
        assert_eq!(reply, Ok(Reply::OpenStream(stream.stream)));
        assert_eq!((stream.received.as_slice(), stream.closed), (&greeting[..], true));
        cluster.stop_all();
    }
}
