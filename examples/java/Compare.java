import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.concurrent.TimeUnit;
import twinserve.v1.CompareRequest;
import twinserve.v1.Comparison;
import twinserve.v1.EmbeddingServiceGrpc;
import twinserve.v1.Input;
import twinserve.v1.Pair;

/**
 * Compares two pictures and prints what the server decides: {@code Compare TARGET FIRST SECOND}.
 *
 * <p>An API key is read from TWINSERVE_API_KEY. docs/clients.md says how to build it.
 */
public final class Compare {
  public static void main(String[] arguments) throws Exception {
    if (arguments.length != 3) {
      System.err.println("usage: Compare TARGET FIRST SECOND");
      System.exit(2);
    }
    // Without usePlaintext() it speaks TLS, with the system's certificates.
    ManagedChannel channel =
        ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
    try {
      Metadata sent = new Metadata();
      String key = System.getenv("TWINSERVE_API_KEY");
      if (key != null) {
        sent.put(
            Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
      }
      CompareRequest request =
          CompareRequest.newBuilder()
              .addPairs(
                  Pair.newBuilder()
                      .setFirst(picture(arguments[1]))
                      .setSecond(picture(arguments[2])))
              .build();
      Comparison found =
          EmbeddingServiceGrpc.newBlockingStub(channel)
              .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(sent))
              // A call without a deadline may wait for ever.
              .withDeadlineAfter(10, TimeUnit.SECONDS)
              .compare(request)
              .getResults(0)
              .getComparison();
      System.out.printf(
          Locale.ROOT,
          "%s distance=%.6f probability=%.6f%n",
          found.getDecision().getOutcome(),
          found.getScore().getDistance(),
          found.getScore().getProbability());
    } catch (StatusRuntimeException failed) {
      System.err.println(reason(failed) + ": " + failed.getStatus().getDescription());
      System.exit(1);
    } finally {
      channel.shutdownNow();
    }
  }

  private static Input picture(String path) throws IOException {
    return Input.newBuilder().setImage(ByteString.copyFrom(Files.readAllBytes(Path.of(path)))).build();
  }

  /** What a program switches on: stable, where the text of an error is not. */
  private static String reason(StatusRuntimeException failed) throws InvalidProtocolBufferException {
    com.google.rpc.Status status = StatusProto.fromThrowable(failed);
    if (status != null) {
      for (com.google.protobuf.Any detail : status.getDetailsList()) {
        if (detail.is(ErrorInfo.class)) {
          return detail.unpack(ErrorInfo.class).getReason();
        }
      }
    }
    return failed.getStatus().getCode().name();
  }
}
