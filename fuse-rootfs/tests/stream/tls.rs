//! HTTPS with a certificate authority of one's own, directly and through a CONNECT proxy.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::server::Server;
use crate::store::{Image, Store, content};
use crate::{compare, config, open};

/// Takes TLS off in front of `behind`; one request per connection. Returns its address and the authority's PEM.
fn tls_in_front_of(behind: SocketAddr) -> (SocketAddr, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let pem = authority.pem();
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let settings = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let settings = Arc::new(settings);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tls = ServerConnection::new(settings.clone()).unwrap();
            std::thread::spawn(move || {
                let _ = one_request(StreamOwned::new(tls, stream), behind); // the client may refuse us
            });
        }
    });
    (address, pem)
}

fn one_request(
    mut front: StreamOwned<ServerConnection, TcpStream>,
    behind: SocketAddr,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut buffer = [0; 2048];
        match front.read(&mut buffer)? {
            0 => return Ok(()),
            got => request.extend_from_slice(&buffer[..got]),
        }
    }
    let mut plain = TcpStream::connect(behind)?;
    plain.write_all(&request)?;
    plain.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer)?;
    front.write_all(&answer)?;
    front.conn.send_close_notify();
    front.flush()
}

/// A proxy that knows CONNECT alone; counts tunnels.
fn connect_proxy() -> (SocketAddr, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let tunnels = Arc::new(AtomicU32::new(0));
    let counter = tunnels.clone();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let counter = counter.clone();
            std::thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if client.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let Some(target) = head
                    .strip_prefix("CONNECT ")
                    .and_then(|rest| rest.split(' ').next())
                else {
                    let _ = client.write_all(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n");
                    return;
                };
                counter.fetch_add(1, Ordering::SeqCst);
                let mut server = TcpStream::connect(target).unwrap();
                client.write_all(b"HTTP/1.1 200 Yes\r\n\r\n").unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(Shutdown::Write);
            });
        }
    });
    (address, tunnels)
}

#[test]
fn https_with_an_authority_of_ones_own_and_through_a_proxy() {
    let mut store = Store::new();
    let images = [Image {
        name: "base",
        bytes: content(21, 2 << 20),
        stacked: true,
    }];
    store.publish("demo", "v1", &images, &[]);
    let server = Server::new(store.path());
    let (address, pem) = tls_in_front_of(server.address);
    let url = format!("https://localhost:{}/", address.port());
    let authorities = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(authorities.path(), format!("# ours\n{pem}")).unwrap();

    let mut config = config(&store, &[url]);
    config.ca_file = Some(authorities.path().into());
    compare(&open(&config).unwrap(), 0, &images[0].bytes);

    let (proxy, tunnels) = connect_proxy();
    config.proxy = Some(format!("http://{proxy}"));
    compare(&open(&config).unwrap(), 0, &images[0].bytes);
    assert!(tunnels.load(Ordering::SeqCst) > 3);

    // Without the authority nobody vouches for the server.
    config.proxy = None;
    config.ca_file = None;
    config.policy.give_up = Duration::from_secs(1);
    let error = open(&config).unwrap_err().to_string();
    assert!(
        error.contains("TLS") && error.to_lowercase().contains("certificate"),
        "{error}"
    );
    std::fs::write(authorities.path(), "rubbish").unwrap();
    config.ca_file = Some(authorities.path().into());
    assert!(
        open(&config)
            .unwrap_err()
            .to_string()
            .contains("no certificate in PEM form")
    );
}
