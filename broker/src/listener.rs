//! stub
use crate::engine::Engine;
use crate::error::BindError;
use std::net::SocketAddr;
use std::sync::Arc;
use weir_core::drain::Drain;
pub struct Listener(std::net::TcpListener, SocketAddr);
impl Listener {
    pub fn bind(conf: &weir_conf::broker::Broker) -> Result<Listener, BindError> {
        let addr = conf.listen;
        let e = |source| BindError::Listen { addr, source };
        let l = std::net::TcpListener::bind(addr).map_err(e)?;
        let a = l.local_addr().map_err(e)?;
        Ok(Listener(l, a))
    }
    pub fn local_addr(&self) -> SocketAddr {
        self.1
    }
    pub async fn run(self, _engine: Arc<Engine>, drain: Drain) {
        let _l = self.0;
        drain.begun().await;
    }
}
