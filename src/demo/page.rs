//! The demo page: static files and the few calls behind its buttons. For development, on loopback only.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::cluster::{Cluster, ClusterError, Order};
use super::samples::{self, Sample};
use super::stage::{self, Stage};
use super::story::{self, Play};
use crate::catalog::Catalog;
use crate::clock::Now;
use crate::id::UserId;
use crate::transport::auth;

/// Between two steps of a story: long enough to read what came.
const PAUSE: Duration = Duration::from_millis(1_500);

/// What the page needs of the running service.
#[derive(Debug)]
pub struct Backstage {
    /// Where the page connects, `https://…/v1/push`, one for each node.
    pub push_urls: Vec<String>,
    /// SHA-256 of the development certificate.
    pub certificate_hash: [u8; 32],
    /// HS256 secret of this run.
    pub secret: Vec<u8>,
    /// Rules, for lanes and audiences of the samples.
    pub catalog: Arc<Catalog>,
    /// Publishes samples and keeps the demo's groups.
    pub stage: Stage,
    /// Folder with the built page.
    pub folder: PathBuf,
    /// What the page's panel shows and ends; `None` with one node, which the page cannot do without.
    pub cluster: Option<Arc<Mutex<Cluster>>>,
}

/// A running page. Its task ends when it is dropped.
#[derive(Debug)]
pub struct Page {
    /// The bound TCP port on loopback.
    pub address: SocketAddr,
    _task: JoinSet<()>,
}

impl Page {
    /// Serves the page on `port` of loopback; 0 picks a free one.
    pub async fn start(port: u16, backstage: Backstage) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/api/config", get(config))
            .route("/api/token", post(token))
            .route("/api/publish", post(publish))
            .route("/api/play", post(play))
            .route("/api/cluster", get(members).post(act))
            .fallback(get(file))
            .with_state(Arc::new(backstage));
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the demo page has failed");
            }
        });
        Ok(Self { address, _task: task })
    }
}

async fn config(State(backstage): State<Arc<Backstage>>) -> Response {
    let samples = samples::all().into_iter().filter_map(|Sample { event_type, title, .. }| {
        let event = backstage.catalog.get(&event_type)?;
        let audience = event.audience.first()?.to.as_str();
        Some(json!({
            "type": event_type, "title": title, "service": event.service(), "lane": event.lane, "audience": audience,
        }))
    });
    Json(json!({
        "urls": backstage.push_urls,
        "certificate_hash": base64::engine::general_purpose::STANDARD.encode(backstage.certificate_hash),
        "users": stage::USERS,
        "samples": samples.collect::<Vec<_>>(),
    }))
    .into_response()
}

/// How the nodes and servers are; nothing with one node.
async fn members(State(backstage): State<Arc<Backstage>>) -> Response {
    match &backstage.cluster {
        Some(cluster) => Json(cluster.lock().await.members().await).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

/// Kills, stops or starts a node or a server, and answers with how all are.
async fn act(State(backstage): State<Arc<Backstage>>, Json(order): Json<Order>) -> Response {
    let Some(cluster) = &backstage.cluster else { return StatusCode::NOT_FOUND.into_response() };
    let mut cluster = cluster.lock().await;
    match cluster.act(order).await {
        Ok(()) => Json(cluster.members().await).into_response(),
        Err(error) => {
            let status = match error {
                ClusterError::NoSuch { .. } => StatusCode::NOT_FOUND,
                ClusterError::State { .. } => StatusCode::CONFLICT,
                _ => StatusCode::BAD_GATEWAY,
            };
            (status, Json(json!({ "error": error.to_string() }))).into_response()
        }
    }
}

#[derive(Deserialize)]
struct TokenRequest {
    user: UserId,
    #[serde(default = "default_ttl_s")]
    ttl_s: u64,
}

const fn default_ttl_s() -> u64 {
    3_600
}

async fn token(State(backstage): State<Arc<Backstage>>, Json(request): Json<TokenRequest>) -> Response {
    let ttl = Duration::from_secs(request.ttl_s);
    let token = auth::sign_hs256(&backstage.secret, &request.user, Now::read(), ttl);
    Json(json!({ "token": token })).into_response()
}

#[derive(Deserialize)]
struct PublishRequest {
    #[serde(rename = "type")]
    event_type: String,
    user: UserId,
}

async fn publish(State(backstage): State<Arc<Backstage>>, Json(request): Json<PublishRequest>) -> Response {
    match backstage.stage.publish_sample(&request.event_type, &request.user).await {
        Ok(published) => Json(json!({
            "subject": published.subject, "notification_id": published.notification_id,
        }))
        .into_response(),
        Err(error) => {
            let status = match error {
                stage::StageError::UnknownSample(_) => StatusCode::NOT_FOUND,
                stage::StageError::Nats(_) => StatusCode::BAD_GATEWAY,
            };
            (status, Json(json!({ "error": error.to_string() }))).into_response()
        }
    }
}

#[derive(Deserialize)]
struct PlayRequest {
    story: String,
    user: UserId,
}

/// Publishes a story's steps and answers with a line of JSON for each as it happens. Whoever closes the connection ends
/// the story.
async fn play(State(backstage): State<Arc<Backstage>>, Json(request): Json<PlayRequest>) -> Response {
    if request.story != story::NAME {
        let error = format!("there is no story {}", request.story);
        return (StatusCode::NOT_FOUND, Json(json!({ "error": error }))).into_response();
    }
    let play = Arc::new(Play::new(request.user.as_str()));
    let steps: Vec<_> = story::steps().into_iter().filter(|step| !step.by_itself).collect();
    let of = steps.len();
    let lines = stream::iter((1..).zip(steps)).then(move |(at, step)| {
        let (backstage, play) = (backstage.clone(), play.clone());
        async move {
            if at > 1 {
                tokio::time::sleep(PAUSE).await;
            }
            let line = match backstage.stage.publish_step(&step, &play.names()).await {
                Ok(published) => {
                    json!({ "step": at, "of": of, "title": play.title(&step), "subject": published.subject })
                }
                Err(error) => json!({ "error": error.to_string() }),
            };
            Ok::<_, Infallible>(format!("{line}\n"))
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// A file of the page's folder; never one outside it.
async fn file(State(backstage): State<Arc<Backstage>>, uri: Uri) -> Response {
    let path = match uri.path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    let bytes = if inside { tokio::fs::read(backstage.folder.join(path)).await.ok() } else { None };
    match bytes {
        Some(bytes) => ([(header::CONTENT_TYPE, content_type(path))], bytes).into_response(),
        None if path == "index.html" => {
            let text = format!(
                "The demo page is not built: no {}. Run ./dev demo.\n",
                backstage.folder.join(path).display()
            );
            (StatusCode::NOT_FOUND, text).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn content_type(path: &str) -> &'static str {
    match Path::new(path).extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        _ => "application/octet-stream",
    }
}
