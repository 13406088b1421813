//! Registries that fail halfway.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use berth_image::{Error, PullOptions};

use crate::support::http::{Request, Response, Server, repository};
use crate::support::layout::{Layout, Spec};
use crate::support::tars::{Tar, noise};
use crate::support::{file_in, runtime, store};

/// A layout with one image of two layers, the digest of its manifest and that of its first layer.
fn image() -> (Layout, String, String) {
    let layers =
        vec![Tar::new().file("big", &noise(9, 900_000)).build(), Tar::new().file("small", b"s").build()];
    let mut layout = Layout::new();
    let manifest = layout.image(&Spec::of(layers));
    layout.list(manifest.clone(), "app:v1");
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let bytes = std::fs::read(layout.path().join("blobs/sha256").join(&digest[7..])).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    (layout, digest, manifest["layers"][0]["digest"].as_str().unwrap().to_owned())
}

fn serve(
    layout: &Layout,
    manifest: &str,
    change: impl Fn(&Request, Response) -> Response + Send + Sync + 'static,
) -> Server {
    let serve = repository(layout.path().to_owned(), manifest.to_owned());
    Server::start(move |request| change(request, serve(request)))
}

fn pull(store: &berth_image::Store, server: &Server) -> Result<berth_image::Image, Error> {
    runtime().block_on(store.pull(&format!("{}/app:v1", server.address), &PullOptions::default()))
}

#[test]
fn broken_downloads_go_on_where_they_broke() {
    let (layout, manifest, layer) = image();
    let wanted = layer.clone();
    let server = serve(&layout, &manifest, move |request, mut response| {
        if request.path.ends_with(&wanted) {
            // At most 400 kB at a time.
            response.cut = Some(400_000).filter(|cut| *cut < response.body.len());
        }
        response
    });
    let store = store();
    let image = pull(&store, &server).unwrap();
    assert_eq!(file_in(&image, "big").unwrap(), noise(9, 900_000));
    let ranges: Vec<_> = server
        .requests()
        .iter()
        .filter(|r| r.path.ends_with(&layer))
        .map(|r| r.header("range").map(str::to_owned))
        .collect();
    assert_eq!(ranges[0], None);
    assert!(ranges.len() >= 3 && ranges[1..].iter().all(Option::is_some), "{ranges:?}");
}

#[test]
fn registries_without_ranges_are_read_again_from_the_start() {
    let (layout, manifest, layer) = image();
    let tries = Arc::new(AtomicUsize::new(0));
    let (wanted, full) =
        (layer.clone(), std::fs::read(layout.path().join("blobs/sha256").join(&layer[7..])).unwrap());
    let server = serve(&layout, &manifest, move |request, response| {
        if !request.path.ends_with(&wanted) {
            return response;
        }
        let cut = (tries.fetch_add(1, Ordering::SeqCst) < 2).then_some(300_000);
        Response { cut, ..Response::new(200, &full) }
    });
    let store = store();
    assert_eq!(file_in(&pull(&store, &server).unwrap(), "big").unwrap(), noise(9, 900_000));
}

#[test]
fn overloaded_registries_are_asked_again() {
    let (layout, manifest, _) = image();
    let failures = Arc::new(AtomicUsize::new(0));
    let server = serve(&layout, &manifest, move |request, response| {
        let fails = request.path.ends_with("/v1") && failures.fetch_add(1, Ordering::SeqCst) < 1;
        if fails { Response::new(503, b"<html>try\nlater</html>") } else { response }
    });
    pull(&store(), &server).unwrap();
    assert_eq!(server.count("/v1"), 2);
}

#[test]
fn dead_registries_are_unavailable() {
    let down = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error =
        runtime().block_on(store().pull(&format!("{down}/app:v1"), &PullOptions::default())).unwrap_err();
    assert!(matches!(error, Error::RegistryUnavailable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    let server = Server::start(|_| Response::new(500, b"<html>\n<h1>oh</h1>\n</html>"));
    let error = pull(&store(), &server).unwrap_err();
    assert!(matches!(error, Error::RegistryUnavailable { .. }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
}

#[test]
fn answers_that_lie_are_corrupt() {
    let (layout, manifest, layer) = image();
    let lies: [fn(Response) -> Response; 3] = [
        |r| Response::new(200, &r.body[..r.body.len() - 1]),
        |r| Response::new(200, &[&r.body[..], b"more"].concat()),
        |mut r| {
            r.body[500] ^= 1;
            r
        },
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        let wanted = layer.clone();
        let server =
            serve(
                &layout,
                &manifest,
                move |request, response| {
                    if request.path.ends_with(&wanted) { lie(response) } else { response }
                },
            );
        let store = store();
        let error = pull(&store, &server).unwrap_err();
        // Cut short again and again, it is the registry that does not deliver.
        let expected = match &error {
            Error::Corrupt { .. } => true,
            Error::RegistryUnavailable { .. } => number == 0,
            _ => false,
        };
        assert!(expected, "{number}: {error}");
        assert_eq!(store.list().unwrap(), []);
        assert_eq!(store.names("tmp"), Vec::<String>::new());
    }
}

#[test]
fn manifests_that_are_none_are_refused() {
    let (layout, manifest, _) = image();
    for (body, wrong) in
        [("<html></html>", "corrupt"), (r#"{"schemaVersion":1}"#, "unsupported"), ("{}", "corrupt")]
    {
        let body = body.as_bytes().to_vec();
        let server = serve(&layout, &manifest, move |request, response| {
            if request.path.ends_with("/v1") { Response::new(200, &body) } else { response }
        });
        let error = pull(&store(), &server).unwrap_err();
        assert!(error.to_string().starts_with(wrong), "{error}");
    }
}

#[test]
fn tokens_are_fetched_with_the_password_and_used() {
    let (layout, manifest, _) = image();
    let serve = repository(layout.path().to_owned(), manifest);
    let address: Arc<std::sync::OnceLock<String>> = Arc::default();
    let own = Arc::clone(&address);
    let server = Server::start(move |request| {
        let authorization = request.header("authorization").unwrap_or("");
        if request.path.starts_with("/token") {
            // user:pw
            return match authorization {
                "Basic dXNlcjpwdw==" => Response::new(200, br#"{"token":"t0ken","expires_in":300}"#),
                _ => Response::new(401, b"{}"),
            };
        }
        if authorization != "Bearer t0ken" {
            let challenge = format!(r#"Bearer realm="http://{}/token",service="reg""#, own.get().unwrap());
            return Response::new(401, b"{}").with("www-authenticate", &challenge);
        }
        serve(request)
    });
    address.set(server.address.clone()).unwrap();
    let store = store();
    let error = pull(&store, &server).unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let options = PullOptions { auth: Some(("user".into(), "pw".into())), ..PullOptions::default() };
    runtime().block_on(store.pull(&format!("{}/app:v1", server.address), &options)).unwrap();
    assert!(server.requests().iter().any(|r| r.path.contains("scope=repository%3Aapp%3Apull")));
}

#[test]
fn concurrent_pulls_share_the_downloads() {
    let (layout, manifest, layer) = image();
    let server = serve(&layout, &manifest, |_, response| response);
    let store = store();
    let name = format!("{}/app:v1", server.address);
    runtime().block_on(async {
        let pulls: Vec<_> = (0..6)
            .map(|_| {
                let (store, name) = (store.store.clone(), name.clone());
                tokio::spawn(async move { store.pull(&name, &PullOptions::default()).await.unwrap().id })
            })
            .collect();
        for pull in pulls {
            pull.await.unwrap();
        }
    });
    assert_eq!(server.count(&layer), 1);
    assert_eq!(store.names("layers").len(), 2);
}

#[test]
fn a_dropped_pull_leaves_no_trace_of_work() {
    let (layout, manifest, layer) = image();
    let server = serve(&layout, &manifest, move |request, mut response| {
        if request.path.ends_with(&layer) {
            // Never as much as was there before, so that the pull does not end before it is dropped.
            response.cut = Some(1000);
        }
        response
    });
    let store = store();
    let name = format!("{}/app:v1", server.address);
    runtime().block_on(async {
        let options = PullOptions::default();
        let pull = store.pull(&name, &options);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1500), pull).await.is_err());
    });
    // The runtime has waited for its blocking tasks.
    assert_eq!(store.names("tmp"), Vec::<String>::new());
    assert_eq!(store.list().unwrap(), []);
}
