//! Who does not belong here.

use super::rig::{Rig, all_up, broker, conf, eventually, introduce, soon, ups};
use crate::link::{FrameReader, write_frame};
use crate::mesh::Conf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use weir_conf::units::Secret;
use weir_wire::codec;
use weir_wire::id::BrokerId;
use weir_wire::mesh::{Hello, Lane, MORE, Opening, PART, Purpose, Shake, Talk};
use weir_wire::peer::{Bye, HELLO_SIZE};

fn hello(id: u64) -> Hello {
    Hello {
        cluster: 7,
        id: BrokerId(id),
        run: 1,
        name: "stranger".into(),
        addr: "127.0.0.1:1".into(),
        wire: (1, 1),
        nonce: [3; 32],
        keyed: true,
        purpose: Purpose::Link,
        to: None,
    }
}

async fn refusals(rig: &Rig, cause: &'static str, least: u64) {
    eventually(|| rig.mesh.shared.metrics.refusals(cause) >= least).await;
}

async fn until_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    // A reset is an end too.
    let _either = soon(stream.read_to_end(&mut said)).await;
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_secret_and_a_missing_one_are_refused_by_both_sides() {
    let a = broker(1, conf("right"));
    for (id, secret) in [(2, "wrong"), (3, "")] {
        let b = broker(id, conf(secret));
        introduce(&[&a, &b]);
        refusals(&a, "secret", 1).await;
        refusals(&b, "secret", 1).await;
        assert!(ups(&a).is_empty() && ups(&b).is_empty(), "{secret:?}");
    }
}

/// A node's proof, a recorded proof, and the other side's own are no proof here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_that_was_heard_elsewhere_is_none() {
    let a = broker(1, conf("secret"));
    for label in [weir_wire::mesh::LISTENER_PROOF, weir_wire::peer::NODE_PROOF, b"replayed"] {
        let stream = TcpStream::connect(a.addr).await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut reader = FrameReader::new(reader, HELLO_SIZE);
        let ours = Opening::Broker(hello(9));
        write_frame(&mut writer, &ours).await.unwrap();
        let theirs: Shake = soon(reader.read()).await.unwrap();
        // "replayed": right, but over another nonce.
        let said = match label {
            b"replayed" => crate::proof::Transcript::of(&Opening::Broker(hello(8)), &theirs).unwrap(),
            _ => crate::proof::Transcript::of(&ours, &theirs).unwrap(),
        };
        let label = if label == b"replayed" { weir_wire::mesh::DIALLER_PROOF } else { label };
        write_frame(&mut writer, &Shake::Proof(said.prove("secret", label))).await.unwrap();
        let end = soon(reader.read::<Shake>()).await.unwrap();
        assert_eq!(end, Shake::Bye(Bye::Secret));
    }
    assert!(ups(&a).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_proof_nonsense_length_and_silence_end_it() {
    let a = broker(1, conf("secret"));
    let long = {
        let mut frame = codec::header(HELLO_SIZE + 1).to_vec();
        frame.extend(vec![0; HELLO_SIZE]);
        frame
    };
    let proof_first = codec::encode(&Shake::Proof(vec![0; 32])).unwrap().to_vec();
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), long, proof_first] {
        let mut stream = TcpStream::connect(a.addr).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        until_closed(&mut stream).await;
    }
    let (mut quiet, mut half) =
        (TcpStream::connect(a.addr).await.unwrap(), TcpStream::connect(a.addr).await.unwrap());
    write_frame(&mut half, &Opening::Broker(hello(9))).await.unwrap();
    let start = Instant::now();
    tokio::join!(until_closed(&mut quiet), until_closed(&mut half));
    let took = start.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(6)).contains(&took), "{took:?}");
    refusals(&a, "timeout", 1).await;
    assert!(ups(&a).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_does_not_fit_is_told_why() {
    let a = broker(1, conf("secret"));
    let refused = [
        (Hello { wire: (2, 3), ..hello(9) }, Bye::Versions),
        (Hello { cluster: 8, ..hello(9) }, Bye::OtherCluster),
        (Hello { to: Some(BrokerId(5)), ..hello(9) }, Bye::OtherBroker),
        (hello(1), Bye::OtherBroker),
        (Hello { keyed: false, ..hello(9) }, Bye::Secret),
        (Hello { name: "x".repeat(256), ..hello(9) }, Bye::Protocol),
    ];
    for (hello, why) in refused {
        let (reader, mut writer) = TcpStream::connect(a.addr).await.unwrap().into_split();
        write_frame(&mut writer, &Opening::Broker(hello)).await.unwrap();
        let end: Shake = soon(FrameReader::new(reader, HELLO_SIZE).read()).await.unwrap();
        assert_eq!(end, Shake::Bye(why));
    }
}

/// Proves itself, and then says something that it must not.
async fn proven(a: &Rig, id: u64) -> TcpStream {
    let mut stream = TcpStream::connect(a.addr).await.unwrap();
    let ours = Opening::Broker(hello(id));
    write_frame(&mut stream, &ours).await.unwrap();
    let (read, mut write) = stream.split();
    let mut reader = FrameReader::new(read, HELLO_SIZE);
    let theirs: Shake = soon(reader.read()).await.unwrap();
    let said = crate::proof::Transcript::of(&ours, &theirs).unwrap();
    let proof = said.prove("secret", weir_wire::mesh::DIALLER_PROOF);
    write_frame(&mut write, &Shake::Proof(proof)).await.unwrap();
    a.seen.until("up", || a.seen.is_up(BrokerId(id))).await;
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_proof_nonsense_cuts_the_link_and_only_that() {
    let (a, b) = (broker(1, conf("secret")), broker(2, conf("secret")));
    introduce(&[&a, &b]);
    all_up(&[&a, &b]).await;
    let part = |bytes: &[u8]| [&codec::header(bytes.len())[..], bytes].concat();
    let taken = codec::encode_body(&Talk::Taken(1)).unwrap();
    let nonsense = [
        b"\0\0\0\0nonsense".to_vec(),
        part(&[9, 1, 2, 3]),
        part(&[Lane::Replica as u8, 255, 255]),
        part(&[&[Lane::Talk as u8], &taken[..]].concat()),
        part(&[Lane::Forward as u8 | MORE]),
        part(&vec![Lane::Bulk as u8; PART + 2]),
    ];
    for (n, bytes) in nonsense.into_iter().enumerate() {
        let mut stream = proven(&a, 100).await;
        stream.write_all(&bytes).await.unwrap();
        until_closed(&mut stream).await;
        a.seen.until(&format!("cut {n}"), || !a.seen.is_up(BrokerId(100))).await;
    }
    assert!(a.seen.is_up(b.id) && ups(&a)[&b.id] <= 2, "the other link stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_reads_nothing_is_cut_and_holds_no_more_than_the_bounds() {
    let a = broker(1, Conf { dead_after: Duration::from_secs(2), ..conf("secret") });
    let _stream = proven(&a, 100).await;
    let data = bytes::Bytes::from(vec![0; 60 << 10]);
    let to = BrokerId(100);
    let mut refused = 0;
    while a.mesh.is_linked(to) && refused < 10 {
        refused += u64::from(!a.mesh.send_replica(to, 1, super::figures::chunk(0, data.clone())));
        tokio::task::yield_now().await;
    }
    let queued: usize = a.mesh.peers().iter().flat_map(|p| p.queued.iter().map(|(_, bytes)| *bytes)).sum();
    assert!(refused == 10 && queued <= 17 << 20, "{refused}, {queued}");
    a.seen.until("cut", || !a.seen.is_up(to)).await;
}

#[tokio::test]
async fn without_a_secret_nothing_but_loopback() {
    let a = broker(1, conf(""));
    let shared = &a.mesh.shared;
    assert!(shared.may_talk_to("127.0.0.1".parse().unwrap()).is_ok());
    assert!(shared.may_talk_to("::1".parse().unwrap()).is_ok());
    for ip in ["10.0.0.1", "192.0.2.7", "::", "2001:db8::1"] {
        assert!(shared.may_talk_to(ip.parse().unwrap()).is_err(), "{ip}");
    }
    let keyed = broker(2, Conf { secret: Secret::new("secret".into()), ..conf("") });
    assert!(keyed.mesh.shared.may_talk_to("10.0.0.1".parse().unwrap()).is_ok());
}
