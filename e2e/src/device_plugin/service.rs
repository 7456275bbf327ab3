//! The plugin's side of the gRPC service, and the one call that it makes itself. Written out by hand: five methods are no reason for a code generator.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::proto::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions, Empty, HEALTHY,
    ListAndWatchResponse, RegisterRequest, UNHEALTHY,
};
use super::{Devices, ENVIRONMENT};

/// Tells the kubelet that the plugin is there.
pub(super) async fn register(channel: Channel, request: RegisterRequest) -> anyhow::Result<()> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/v1beta1.Registration/Register");
    client.unary::<_, Empty, _>(Request::new(request), path, ProstCodec::default()).await?;
    Ok(())
}

/// What the plugin answers.
#[derive(Debug, Clone)]
pub(super) struct Plugin {
    devices: watch::Receiver<Devices>,
}

impl Plugin {
    pub(super) fn new(devices: watch::Receiver<Devices>) -> Self {
        Self { devices }
    }
}

fn list(devices: Devices) -> ListAndWatchResponse {
    let healthy = devices.total.saturating_sub(devices.broken);
    let device = |number| Device {
        id: format!("lab-gpu-{number}"),
        health: if number < healthy { HEALTHY } else { UNHEALTHY }.to_owned(),
    };
    ListAndWatchResponse { devices: (0..devices.total).map(device).collect() }
}

fn allocate(request: AllocateRequest) -> AllocateResponse {
    let one =
        |ids: Vec<String>| ContainerAllocateResponse { envs: HashMap::from([(ENVIRONMENT.to_owned(), ids.join(","))]) };
    AllocateResponse {
        container_responses: request
            .container_requests
            .into_iter()
            .map(|container| one(container.device_ids))
            .collect(),
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

struct Options;

impl UnaryService<Empty> for Options {
    type Response = DevicePluginOptions;
    type Future = Answer<DevicePluginOptions>;

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        async { Ok(Response::new(DevicePluginOptions::default())) }.boxed()
    }
}

struct ListAndWatch(Arc<Plugin>);

impl ServerStreamingService<Empty> for ListAndWatch {
    type Response = ListAndWatchResponse;
    type ResponseStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        let mut devices = self.0.devices.clone();
        // The list as it is goes out at once, and again after each change.
        devices.mark_changed();
        let changes = stream::unfold(devices, |mut devices| async move {
            devices.changed().await.ok()?;
            let now = *devices.borrow_and_update();
            Some((Ok(list(now)), devices))
        })
        .boxed();
        async move { Ok(Response::new(changes)) }.boxed()
    }
}

struct Allocate;

impl UnaryService<AllocateRequest> for Allocate {
    type Response = AllocateResponse;
    type Future = Answer<AllocateResponse>;

    fn call(&mut self, request: Request<AllocateRequest>) -> Self::Future {
        let answer = allocate(request.into_inner());
        async move { Ok(Response::new(answer)) }.boxed()
    }
}

/// The service as tonic's server takes it.
#[derive(Debug, Clone)]
pub(super) struct PluginServer {
    plugin: Arc<Plugin>,
}

impl PluginServer {
    pub(super) fn new(plugin: Plugin) -> Self {
        Self { plugin: Arc::new(plugin) }
    }
}

impl NamedService for PluginServer {
    const NAME: &'static str = "v1beta1.DevicePlugin";
}

impl tower::Service<http::Request<Body>> for PluginServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let plugin = Arc::clone(&self.plugin);
        async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            Ok(match method.as_str() {
                "GetDevicePluginOptions" => Grpc::new(ProstCodec::default()).unary(Options, request).await,
                "ListAndWatch" => {
                    Grpc::new(ProstCodec::default()).server_streaming(ListAndWatch(plugin), request).await
                }
                "Allocate" => Grpc::new(ProstCodec::default()).unary(Allocate, request).await,
                // The options say that the other two are not wanted.
                _ => Status::unimplemented("the lab's plugin has no such method").into_http(),
            })
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
