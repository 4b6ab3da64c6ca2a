//! An enum of streams is a stream itself: what is asked of it goes to the one that it holds.

macro_rules! delegate {
    ($name:ident { $($variant:ident),+ }, vectored: $($vectored:ident),+) => {
        impl tokio::io::AsyncRead for $name {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match &mut *self {
                    $($name::$variant(stream) => std::pin::Pin::new(stream).poll_read(cx, buf)),+
                }
            }
        }

        impl tokio::io::AsyncWrite for $name {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                data: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match &mut *self {
                    $($name::$variant(stream) => std::pin::Pin::new(stream).poll_write(cx, data)),+
                }
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                data: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                match &mut *self {
                    $($name::$variant(stream) => std::pin::Pin::new(stream).poll_write_vectored(cx, data)),+
                }
            }

            fn is_write_vectored(&self) -> bool {
                matches!(self, $($name::$vectored(_))|+)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match &mut *self {
                    $($name::$variant(stream) => std::pin::Pin::new(stream).poll_flush(cx)),+
                }
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                match &mut *self {
                    $($name::$variant(stream) => std::pin::Pin::new(stream).poll_shutdown(cx)),+
                }
            }
        }
    };
}

pub(crate) use delegate;
